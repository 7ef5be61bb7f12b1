//! The emulator of the platform with clients by other authors: the official SDKs.
//!
//! `KSYNC_SDK_PYTHON` is a Python with the package `kernel`. `KSYNC_SDK_NODE_DIR` is a directory
//! whose `node_modules` contains `@onkernel/sdk`. A test whose SDK is missing reports that and
//! passes, unless `KSYNC_REQUIRE_PEERS=1`.
#![cfg(feature = "sandbox")]
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod world;

use std::path::{Path, PathBuf};

use world::skip::needs;
use world::{Emulator, Run, World};

/// Value of a variable. If it is not set, skips the test and returns `None`.
fn named(variable: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    needs(named.is_some(), format!("no {variable}"));
    named
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk").join(name)
}

/// Sets the subresources that an SDK requests from the VM itself, and not from the API.
const ROUTING: &str = "KERNEL_BROWSER_ROUTING_SUBRESOURCES";

/// Requests that the Node SDK can send to the VM. It sends the uploads of forms there with a wrong
/// boundary, so these are left to the API.
const NODE_IN_VM: &str = "curl,telemetry/stream,computer,playwright,process,logs/stream,fs/create_directory,\
    fs/delete_directory,fs/delete_file,fs/download_dir_zip,fs/file_info,fs/list_files,fs/move,fs/read_file,\
    fs/set_file_permissions,fs/watch,fs/write_file";

/// Drives an emulator with the Python SDK, and returns what the script printed.
fn python(way: &str, routing: Option<&str>) -> Option<String> {
    let python = named("KSYNC_SDK_PYTHON")?;
    let world = World::new();
    let emulator = Emulator::new(&world);
    let mut command = emulator.lend(world.command(python));
    command.arg("-B").arg(script("drive.py")).arg(way);
    command.envs(routing.map(|subresources| (ROUTING, subresources)));
    Some(Run::of(command).ok().stdout)
}

/// As [`python`], with the Node SDK.
fn node(way: &str, routing: Option<&str>) -> Option<String> {
    let directory = named("KSYNC_SDK_NODE_DIR")?;
    let world = World::new();
    let emulator = Emulator::new(&world);
    // Node looks for modules from the directory of the script.
    for name in ["drive.mjs", "types.mjs"] {
        std::fs::copy(script(name), world.path(name)).expect("a copy");
    }
    std::os::unix::fs::symlink(directory.join("node_modules"), world.path("node_modules")).expect("a link");
    let mut command = emulator.lend(world.command("node"));
    command.arg("drive.mjs").arg(way);
    command.envs(routing.map(|subresources| (ROUTING, subresources)));
    Some(Run::of(command).ok().stdout)
}

#[test]
fn the_python_sdk_accepts_every_answer_of_the_vm() {
    let Some(printed) = python("vm", None) else { return };
    assert_eq!(printed, "python: 51 right, 128 answered 501\n");
}

#[test]
fn the_python_sdk_accepts_every_answer_of_the_api() {
    let Some(printed) = python("api", Some("")) else { return };
    assert_eq!(printed, "python: 51 right, 128 answered 501\n");
}

#[test]
fn the_node_sdk_accepts_every_answer_of_the_vm() {
    let Some(printed) = node("vm", Some(NODE_IN_VM)) else { return };
    assert_eq!(printed, "node: 50 right, 79 answered 501\n");
}

#[test]
fn the_node_sdk_accepts_every_answer_of_the_api() {
    let Some(printed) = node("api", None) else { return };
    assert_eq!(printed, "node: 50 right, 79 answered 501\n");
}

#[test]
fn the_printed_environment_names_the_api_and_existing_files() {
    let world = World::new();
    let (first, second) = (Emulator::new(&world), Emulator::new(&world));
    let env = &first.told["env"];
    let text = |name: &str| env[name].as_str().expect("a string").to_owned();
    assert!(text("KERNEL_BASE_URL").starts_with("http://127.0.0.1:"));
    assert_ne!(env["KERNEL_API_KEY"], second.told["env"]["KERNEL_API_KEY"]);
    let certificate = std::fs::read_to_string(text("KSYNC_CA_CERT")).expect("a file");
    assert!(certificate.starts_with("-----BEGIN CERTIFICATE-----"));
    assert_eq!(first.told["setup"]["ssh_command"], first.told["ssh_command"]);
    let file = text("KSYNC_CA_CERT");
    drop(first);
    assert!(!Path::new(&file).exists());
}
