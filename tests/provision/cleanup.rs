//! Cleanup of a VM.

use crate::first::assert_lets_in;
use crate::vm::{Image, on_vm};

#[test]
fn a_cleanup_removes_only_ksyncs_key_and_caches() {
    on_vm(Image::New, |vm| {
        let (theirs, ours) = (vm.make_key("theirs"), vm.make_key("ours"));
        vm.provision(&theirs).ok();
        let host_key = vm.provision(&ours).ok().told("host-key").expect("a host key").to_owned();
        let caches =
            "/root/.cache/ksync /root/.local/state/ksync /var/tmp/ksync-0 /tmp/ksync-0 /dev/shm/ksync-0";
        vm.sh(&format!("mkdir -p {caches} && touch /root/.cache/ksync/agent /root/.cache/other"));
        let foreign = format!("from=\"127.0.0.1\",no-pty {theirs}");
        vm.sh(&format!(
            "echo '# a note' >>/root/.ssh/authorized_keys; echo '{foreign}' >>/root/.ssh/authorized_keys"
        ));
        let look = "chmod 640 /root/.ssh/authorized_keys; stat -c '%i %a %u:%g' /root/.ssh/authorized_keys";
        let before = vm.sh(look);

        let ran = vm.clean_up(&[&ours]).ok();
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));
        assert_eq!(vm.keys(), [theirs.as_str(), "# a note", &foreign]);
        assert_eq!(
            vm.sh("stat -c '%i %a %u:%g' /root/.ssh/authorized_keys; ls -A /root/.ssh"),
            format!("{before}authorized_keys\n")
        );
        assert_eq!(vm.sh(&format!("ls -d {caches} 2>/dev/null || true")), "");
        assert_eq!(vm.sh("ls /root/.cache/other"), "/root/.cache/other\n");
        // The services stay, with the keys of other users.
        assert_lets_in(vm, "theirs", &host_key);
        assert_eq!(vm.log_in("ours", &host_key, "true").code, Some(255));
        vm.clean_up(&[&ours]).ok();
        assert_eq!(vm.keys().len(), 3);
    });
}

#[test]
fn keys_are_told_apart_by_their_data_and_lines_by_their_text() {
    on_vm(Image::New, |vm| {
        let [users, one, two] = ["users", "one", "two"].map(|name| vm.make_key(name));
        let ours = |key: &str| key.split(' ').take(2).chain(["ksync"]).collect::<Vec<_>>().join(" ");
        vm.sh("mkdir -p -m 700 /root/.ssh");
        vm.sh(&format!("printf '%s\\n' '# mine' '{users}' '' 'no-pty {two}' >/root/.ssh/authorized_keys"));
        let before = vm.keys();
        for key in [&users, &one, &two] {
            vm.provision(&ours(key)).ok();
            vm.provision(&ours(key)).ok();
        }
        // The user's own key is there already. With options it is no key for everything.
        let all = [before.as_slice(), &[ours(&one), ours(&two)]].concat();
        assert_eq!(vm.keys(), all);
        let look = "stat -c '%i %a %u:%g' /root/.ssh/authorized_keys";
        let file = vm.sh(look);
        vm.clean_up(&[]).ok();
        vm.clean_up(&[&one]).ok();
        assert_eq!(vm.keys(), all, "no such line is there");
        vm.clean_up(&[&ours(&users), &ours(&one), &ours(&two)]).ok();
        assert_eq!((vm.keys(), vm.sh(look)), (before, file));
    });
}
