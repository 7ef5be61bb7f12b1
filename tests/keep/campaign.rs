//! Forced faults at random, from a seed: `KSYNC_KEEP_CASES=1000 cargo test --test keep forced`. A
//! few of them run always.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;

use crate::kept::Kept;
use crate::world::{Run, noise, wait_for};

/// Cases of the usual tests.
const CASES: u64 = 8;

/// A generator of pseudorandom numbers: the splitmix64 of Vigna.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// Waits for a keeper. The fault of an earlier case may have ended the one that served its run.
fn serving(kept: &Kept) {
    wait_for("a keeper", || {
        if kept.keepers().is_empty() {
            kept.sync(&[]).ok();
            std::thread::sleep(Duration::from_millis(300));
        }
        kept.keepers().pop()
    });
}

#[test]
fn forced_faults_change_no_result_and_fail_no_run() {
    let Some(kept) = Kept::start() else { return };
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let (cases, seed) = (number("KSYNC_KEEP_CASES").unwrap_or(CASES), number("KSYNC_KEEP_SEED").unwrap_or(1));
    let mut random = Random(seed);
    kept.machine.world.tree("src").file("a", "one");
    kept.sync(&[]).ok();
    for case in 0..cases {
        let what = format!("case {case} of seed {seed}");
        if random.below(4) > 0 {
            serving(&kept);
        }
        let keepers = kept.keepers();
        let size = [10, 100_000, 3_000_000][random.below(3) as usize];
        kept.machine.world.tree("src").file("b", noise(case, size));
        let fault = random.below(6);
        let delay = Duration::from_micros(random.below(60_000));
        // A cut may hit a login, which fails without a keeper too.
        let is_before = random.below(3) == 0 || fault == 3;
        let force = || match fault {
            0 => keepers.iter().for_each(|keeper| keeper.signal(Signal::KILL)),
            1 => keepers.iter().for_each(|keeper| keeper.signal(Signal::STOP)),
            2 => keepers.iter().for_each(|keeper| keeper.signal(Signal::TERM)),
            3 => kept.link.cut(),
            4 => drop(Run::of(kept.ksync(["keep", "stop"]))),
            _ => {}
        };
        if is_before {
            force();
        }
        let mut command = kept.copy(&[]);
        let running =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if !is_before {
            std::thread::sleep(delay);
            force();
        }
        let run = Run::end_of(running);
        assert_eq!(run.status.code(), Some(0), "{what}: {run:?}");
        kept.is_same();
        if fault == 1 {
            Run::of(kept.ksync(["keep", "stop"])).ok();
        }
    }
}
