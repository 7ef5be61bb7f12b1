//! Names of the exit codes, for programs.

/// An exit code with its name.
struct Code {
    exit: u8,
    name: &'static str,
    /// True if the same command may succeed later, without a change to it.
    is_retryable: bool,
}

const fn code(exit: u8, name: &'static str, is_retryable: bool) -> Code {
    Code { exit, name, is_retryable }
}

const CODES: &[Code] = &[
    code(1, "usage", false),
    code(2, "protocol-version", false),
    code(3, "selection", false),
    code(5, "not-started", false),
    code(10, "connection", true),
    code(11, "file", false),
    code(12, "protocol", true),
    code(20, "signal", true),
    code(23, "partial", false),
    code(24, "vanished", true),
    code(25, "brake", false),
    code(26, "plan", false),
    code(30, "timeout", true),
    code(35, "connect-timeout", true),
    code(40, "not-authorised", false),
    code(41, "session-gone", false),
    code(42, "provisioning", true),
    code(43, "host-key", false),
    code(44, "verification", false),
    code(47, "command", false),
];

/// The name of an exit code. A code of another program, as of `ksync ssh`, has no name of its own.
pub(crate) fn name(exit: u8) -> &'static str {
    CODES.iter().find(|code| code.exit == exit).map_or("other", |code| code.name)
}

/// True if the same command may succeed later.
pub(crate) fn is_retryable(exit: u8) -> bool {
    CODES.iter().any(|code| code.exit == exit && code.is_retryable)
}
