//! `-n --plan FILE` and `ksync apply FILE`: a plan printed is the plan executed, or nothing is.

use std::ffi::OsString;
use std::fs;

use serde_json::Value;

use crate::plan::{Rng, grow};
use crate::world::schema::faults;
use crate::world::{Run, World};

/// The schema of plans.
const SCHEMA: &str = include_str!("../../fixtures/schema/plan.json");

/// The endpoints of a run: local, up and down.
fn ways(world: &World) -> [[OsString; 2]; 3] {
    let (src, dst) = (OsString::from("src"), OsString::from("dst"));
    [[src.clone(), dst.clone()], [src, world.far("dst")], [world.far("src"), dst]]
}

/// Plans a run, and returns the lines that it shows.
fn plan(world: &World, options: &[&str], ends: &[OsString]) -> Vec<String> {
    let mut ksync = world.ksync(["-ni", "--plan=plan"]);
    ksync.args(options).args(ends);
    let run = Run::of(ksync);
    assert!(matches!(run.status.code(), Some(0 | 23)), "{}", run.stderr);
    itemized(&run)
}

fn itemized(run: &Run) -> Vec<String> {
    let is_line =
        |line: &&str| line.as_bytes().get(11) == Some(&b' ') && line.starts_with(['<', '>', 'c', '.', '*']);
    run.stdout.lines().filter(is_line).map(str::to_owned).collect()
}

fn read_plan(world: &World) -> Value {
    serde_json::from_str(&fs::read_to_string(world.path("plan")).unwrap()).unwrap()
}

#[test]
fn planned_lines_are_those_that_the_apply_does() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    for seed in 0..30 {
        let mut rng = Rng::new(seed);
        let world = World::new();
        let names = &["a", "b", "c", "skip"];
        grow(&mut rng, names, world.tree("src"), "", 2);
        if seed % 7 > 0 {
            grow(&mut rng, names, world.tree("dst"), "", 2);
        }
        let ends = &ways(&world)[seed as usize % 3];
        let options: &[&str] = match seed % 4 {
            0 => &["--links"],
            1 => &["--links", "--delete", "--exclude=skip"],
            2 => &["--links", "--delete", "--checksum", "--backup", "--backup-dir=../old"],
            _ => &["--links", "--existing", "--filter=- /c"],
        };
        let before = (world.snapshot("src"), world.path("dst").exists().then(|| world.snapshot("dst")));
        let planned = plan(&world, options, ends);
        let file = read_plan(&world);
        assert_eq!(faults(&schema, &schema, &file), [""; 0], "{file}");
        let told = |change: &Value| change["line"].as_str().unwrap().to_owned();
        assert_eq!(file["changes"].as_array().unwrap().iter().map(told).collect::<Vec<_>>(), planned);
        let now = (world.snapshot("src"), world.path("dst").exists().then(|| world.snapshot("dst")));
        assert_eq!(now, before);
        let run = world.run(["apply", "-iy", "plan"]);
        assert!(matches!(run.status.code(), Some(0 | 23)), "seed {seed} {}{}", run.stdout, run.stderr);
        assert_eq!(itemized(&run), planned, "seed {seed}");
        // A plan is carried out once.
        if !planned.is_empty() {
            world.run(["apply", "-iy", "plan"]).fails(26);
        }
    }
}

#[test]
fn any_change_on_either_side_stops_the_apply_before_it_touches_anything() {
    type Edit = fn(&World, &str);
    let edits: [Edit; 5] = [
        |world, side| drop(world.tree(side).file("new", "x")),
        |world, side| drop(world.tree(side).file("d/both", "other")),
        |world, side| fs::remove_file(world.path(side).join("d/both")).unwrap(),
        |world, side| drop(world.tree(side).mode("d/both", 0o600)),
        |world, side| drop(world.tree(side).time("", 77, 0)),
    ];
    for (index, edit) in edits.iter().enumerate() {
        for (side, text) in [("src", "the source has"), ("dst", "the destination has")] {
            let world = World::new();
            world.tree("src").file("d/both", "one").file("own", "x").file("d/skip.o", "");
            world.tree("dst").file("d/both", "text").file("old", "x");
            let ends = &ways(&world)[index % 3];
            plan(&world, &["--delete", "--exclude=*.o"], ends);
            // Excluded entries are no part of the plan.
            fs::write(world.path("src/d/skip.o"), "y").unwrap();
            edit(&world, side);
            let before = (world.snapshot("src"), world.snapshot("dst"));
            let run = world.run(["apply", "--yes", "plan"]).fails(26);
            assert_eq!((world.snapshot("src"), world.snapshot("dst")), before, "{index}");
            let told = format!(
                "{text} changed since the plan was made: nothing was changed\n  hint: Make the plan anew"
            );
            assert!(run.stderr.contains(&told), "{}", run.stderr);
        }
    }
}

#[test]
fn plan_gives_no_consent_to_deletions() {
    let world = World::new();
    world.tree("src").file("new", "x");
    world.tree("dst").file("a", "x").file("b", "x");
    let before = world.snapshot("dst");
    plan(&world, &["--delete", "--yes"], &ways(&world)[0]);
    let run = world.run(["apply", "plan"]).fails(25);
    assert!(run.stderr.contains("--yes deletes them"), "{}", run.stderr);
    assert_eq!(world.snapshot("dst"), before);
    world.run(["apply", "--json", "plan"]).fails(25);
    assert_eq!(world.snapshot("dst"), before);
    let run = world.run(["apply", "--yes", "--verify", "plan"]).ok();
    assert!(run.summary().contains("verified, no difference"), "{}", run.stdout);
    assert!(!world.path("dst/a").exists());
}

#[test]
fn edited_or_foreign_plan_is_refused() {
    let world = World::new();
    world.tree("src").file("a", "x");
    world.tree("secret").file("key", "x");
    plan(&world, &[], &ways(&world)[0]);
    let own = fs::read_to_string(world.path("plan")).unwrap();
    let edit = |change: &dyn Fn(&mut Value)| {
        let mut edited: Value = serde_json::from_str(&own).unwrap();
        change(&mut edited);
        fs::write(world.path("plan"), edited.to_string()).unwrap();
    };
    let secret = Value::from(world.path("secret").to_str().unwrap());
    edit(&|plan| plan["sources"][0] = secret.clone());
    world.run(["apply", "plan"]).fails(26);
    edit(&|plan| plan["options"] = vec!["--exec=touch ran"].into());
    let run = world.run(["apply", "plan"]).fails(26);
    assert!(run.stderr.contains("was edited, or made by another user"), "{}", run.stderr);
    edit(&|plan| drop(plan.as_object_mut().unwrap().remove("seal")));
    world.run(["apply", "plan"]).fails(26);
    // Another form of the same plan is the same.
    edit(&|_| {});
    let mut other = world.ksync(["apply", "plan"]);
    other.env("XDG_STATE_HOME", world.path("elsewhere"));
    Run::of(other).fails(26);
    assert!(!world.path("dst").exists() && !world.path("ran").exists());
    fs::write(world.path("none"), "{}").unwrap();
    for args in [&["apply", "missing"][..], &["apply"], &["apply", "--delete", "plan"]] {
        world.run(args).fails(1);
    }
    world.run(["apply", "none"]).fails(26);
    world.run(["apply", "plan"]).ok();
    world.assert_same("src", "dst");
}

#[test]
fn plan_keeps_options_and_ignores_settings_that_shape_the_result() {
    let world = World::new();
    world.tree("src").file("a", "x").file("b.o", "x").file("c.tmp", "x");
    world.tree(".").file("rules", "*.o\n");
    let mut ksync = world.ksync(["-ni", "--plan=plan", "--exclude-from=rules", "src", "dst"]);
    ksync.env("KSYNC_EXCLUDE", "*.tmp");
    let planned = itemized(&Run::of(ksync).ok());
    assert_eq!(planned.len(), 2, "{planned:?}");
    fs::write(world.path("rules"), "*.x\n").unwrap();
    let run = world.run(["apply", "plan"]).fails(26);
    assert!(run.stderr.contains("a file of rules has changed"), "{}", run.stderr);
    fs::write(world.path("rules"), "*.o\n").unwrap();
    let mut ksync = world.ksync(["apply", "-i", "plan"]);
    ksync.envs([("KSYNC_CHECKSUM", "true"), ("KSYNC_EXCLUDE", "a"), ("KSYNC_DRY_RUN", "true")]);
    let run = Run::of(ksync).ok();
    assert_eq!(itemized(&run), planned);
    assert!(world.path("dst/a").exists() && !world.path("dst/b.o").exists());
    for line in [
        &["--plan=plan", "src", "dst"][..],
        &["-n", "--plan=plan", "--exclude-from=-", "src", "dst"],
        &["-n", "--plan=no/where", "src", "dst2"],
    ] {
        let run = world.run(line);
        assert!(matches!(run.status.code(), Some(1 | 11)), "{}", run.stderr);
        assert!(run.stderr.contains("hint: "), "{}", run.stderr);
    }
}
