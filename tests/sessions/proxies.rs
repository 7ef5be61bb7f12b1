//! Proxies of the environment, for the API, bridges and CDP.

use std::fs;
use std::process::Command;

use crate::platform::{Platform, endpoint};
use crate::proxy_server::{Manner, ProxyServer};
use crate::tls::Tls;
use crate::world::service::closed_port;
use crate::world::{Run, World};

/// A login, and how it is written in a URL.
const LOGIN: Manner = Manner::Login("me", "p@ss:w%");
const IN_URL: &str = "me:p%40ss%3Aw%25";

/// A platform whose API has TLS, and a name that only a proxy knows.
struct Far {
    world: World,
    platform: Platform,
    api: Tls,
}

impl Far {
    fn new() -> Far {
        let world = World::new();
        let platform = Platform::start(&world);
        world.tree("src").with_everything();
        let url = platform.env("KERNEL_BASE_URL").replace("http://", "ws://");
        let api = Tls::named("api.test", &url, &world);
        fs::copy(platform.env("KSYNC_CA_CERT"), world.path("trusted.pem")).unwrap();
        let far = Far { world, platform, api };
        far.trust("ca.pem");
        far
    }

    /// Trusts a further CA.
    fn trust(&self, file: &str) {
        let read = |name: &str| fs::read_to_string(self.world.path(name)).unwrap();
        fs::write(self.world.path("trusted.pem"), read("trusted.pem") + &read(file)).unwrap();
    }

    /// `ksync` with these variables.
    fn ksync(&self, args: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut command = self.platform.ksync(&self.world, args);
        command.env("KERNEL_BASE_URL", self.api.url.replace("wss://", "https://"));
        command.env("KSYNC_CA_CERT", self.world.path("trusted.pem"));
        command.envs(variables.iter().copied());
        command
    }
}

#[test]
fn api_bridge_and_cdp_go_through_each_kind_of_proxy() {
    let far = Far::new();
    let proxy = ProxyServer::start(LOGIN);
    let with_tls = Tls::before(&format!("ws://{}", proxy.address), &far.world);
    far.trust("ca.pem");
    let with_tls = with_tls.url.strip_prefix("wss://").unwrap();
    let id = far.platform.create(&far.world, &[]);
    let session = far.platform.session(&id);
    let cdp = far.platform.env("KERNEL_BASE_URL").strip_prefix("http://").unwrap();
    let api = far.api.url.strip_prefix("wss://").unwrap();
    for (scheme, address) in [
        ("http", proxy.address.as_str()),
        ("https", with_tls),
        ("socks5h", &proxy.address),
        ("socks4a", &proxy.address),
    ] {
        let setting = format!("{scheme}://{IN_URL}@{address}");
        let there = endpoint(&far.world, &id, scheme);
        // Without a stored session, ksync asks the API.
        let _ = fs::remove_dir_all(far.world.path("state/ksync/sessions"));
        let run = Run::of(far.ksync(&["-vv", "src", &there], &[("ALL_PROXY", &setting)])).ok();
        far.world.assert_same("src", scheme);
        assert!(run.stderr.contains(&format!("step=proxy proxy={scheme}://{address} (ALL_PROXY)")));
        assert!(!run.stderr.contains("p@ss") && !run.stderr.contains("p%40ss"), "{}", run.stderr);
        let asked = proxy.asked();
        for to in [api, session["ssh_address"].as_str().unwrap(), cdp] {
            assert!(asked.iter().any(|asked| asked == to), "{to} by {scheme}: {asked:?}");
        }
    }
}

#[test]
fn an_exempt_host_gets_no_proxy() {
    let far = Far::new();
    let proxy = ProxyServer::start(Manner::Refuse(403));
    let id = far.platform.create(&far.world, &[]);
    let there = endpoint(&far.world, &id, "there");
    let variables = [("ALL_PROXY", proxy.address.as_str()), ("NO_PROXY", "api.test,127.0.0.0/8")];
    let mut command = far.ksync(&["src", &there], &variables);
    // The other name of the API needs no proxy to be resolved.
    command.env("KERNEL_BASE_URL", far.platform.env("KERNEL_BASE_URL"));
    Run::of(command).ok();
    far.world.assert_same("src", "there");
    let run = Run::of(far.ksync(&["session", "list"], &variables)).fails(10);
    assert!(run.stderr.contains("could not list the sessions: the connection to"), "{}", run.stderr);
    assert_eq!(proxy.asked(), Vec::<String>::new());
}

#[test]
fn a_refusal_names_the_proxy_and_its_variable() {
    let far = Far::new();
    let api = far.api.url.replace("wss://", "https://");
    for (manner, login, why, hint) in [
        (
            Manner::Refuse(403),
            "",
            "it answered 403 Forbidden",
            "Ask whoever runs the proxy to allow this host and port, or connect to it directly with NO_PROXY=HOST.",
        ),
        (
            LOGIN,
            "me:wrong@",
            "it answered 407 Proxy Authentication Required",
            "Give the login in https_proxy, as in SCHEME://USER:PASSWORD@HOST:PORT; special characters are encoded (%40 for \
             @).",
        ),
    ] {
        let proxy = ProxyServer::start(manner);
        let setting = format!("http://{login}{}", proxy.address);
        let named =
            format!("through the proxy http://{} (https_proxy): {why}\n  hint: {hint}\n", proxy.address);
        let variables = [("https_proxy", setting.as_str())];
        Run::of(far.ksync(&["session", "list"], &variables)).fails(10).says(&format!(
            "ksync: could not list the sessions: could not connect to {api} {}",
            named.replace("HOST.", "api.test.")
        ));
        Run::of(far.ksync(&["proxy", "wss://vm.test:2222"], &variables)).fails(10).says(&format!(
            "ksync: could not connect to wss://vm.test:2222 {}",
            named.replace("HOST.", "vm.test.")
        ));
        assert_eq!(proxy.asked(), [api.replace("https://", ""), "vm.test:2222".to_owned()]);
        // An endpoint without TLS is not for this variable.
        let url = format!("ws://127.0.0.1:{}", closed_port());
        let run = Run::of(far.ksync(&["proxy", &url], &variables)).fails(10);
        assert!(run.stderr.starts_with(&format!("ksync: could not connect to {url}: connection refused")));
    }
}

#[test]
fn socks_proxies_refuse_in_their_own_words() {
    let world = World::new();
    for (manner, scheme, login, why) in [
        (Manner::Refuse(403), "socks5h", "", "its rules do not allow the connection"),
        (LOGIN, "socks5h", "", "it wants a login"),
        (LOGIN, "socks5h", "me:wrong@", "it refuses the user name or the password"),
        (Manner::Open, "socks5", "", "the host's name cannot be resolved on this side: "),
    ] {
        let proxy = ProxyServer::start(manner);
        let mut command = world.ksync(["proxy", "wss://vm.test:2222"]);
        command.env("HTTPS_PROXY", format!("{scheme}://{login}{}", proxy.address));
        let run = Run::of(command).fails(10);
        let named = format!("through the proxy {scheme}://{} (HTTPS_PROXY): {why}", proxy.address);
        assert!(run.stderr.starts_with(&format!("ksync: could not connect to wss://vm.test:2222 {named}")));
        assert!(!run.stderr.contains("wrong"), "{}", run.stderr);
    }
}

#[test]
fn a_silent_proxy_and_an_absent_one_are_given_up() {
    let world = World::new();
    world.tree("src").with_everything();
    for scheme in ["http", "socks5h"] {
        let proxy = ProxyServer::start(Manner::Silent);
        let mut command = world.ksync(["--contimeout=1", "src", "wss://vm.test/x"]);
        command.env("all_proxy", format!("{scheme}://{}", proxy.address));
        let run = Run::of(command).fails(35);
        let named =
            format!("through the proxy {scheme}://{} (all_proxy): no answer within 1 s", proxy.address);
        assert!(run.stderr.contains(&named), "{}", run.stderr);
    }
    let mut command = world.ksync(["proxy", "wss://vm.test"]);
    command.env("HTTPS_PROXY", format!("127.0.0.1:{}", closed_port()));
    let run = Run::of(command).fails(10);
    assert!(run.stderr.contains("(HTTPS_PROXY): it cannot be reached: connection refused"), "{}", run.stderr);
}

#[test]
fn a_setting_that_names_no_proxy_is_an_error_where_it_counts() {
    let far = Far::new();
    let variables = [("HTTPS_PROXY", "socks6://me:secret@h")];
    for args in [&["session", "list"][..], &["proxy", "wss://vm.test"], &["src", "wss://vm.test/x"]] {
        let run = Run::of(far.ksync(args, &variables)).fails(1);
        let said = "ksync: could not use the proxy in HTTPS_PROXY: its scheme is socks6, and ksync knows http, https, \
                    socks4, socks4a, socks5 and socks5h\n  hint: Write it as";
        assert!(run.stderr.contains(said), "{}", run.stderr);
        assert!(!run.stderr.contains("secret"), "{}", run.stderr);
    }
    // Neither ssh nor the embedded emulator uses a proxy.
    let variables = [("ALL_PROXY", "socks6://h")];
    let there = far.world.far("there");
    Run::of(far.ksync(&["src", there.to_str().unwrap()], &variables)).ok();
    let url = format!("ssh://me@127.0.0.1:{}/x", closed_port());
    let run = Run::of(far.ksync(&["src", &url], &variables)).fails(10);
    assert!(run.stderr.contains("connection refused"), "{}", run.stderr);
}
