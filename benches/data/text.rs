//! Text that compresses like C: zstd -1 reduces it to a quarter, like the Linux source.

use super::Rng;

/// Words of identifiers.
pub(crate) const WORDS: &[&str] = &[
    "dev",
    "reg",
    "ctl",
    "buf",
    "irq",
    "page",
    "node",
    "list",
    "lock",
    "init",
    "port",
    "clk",
    "dma",
    "queue",
    "ring",
    "skb",
    "sock",
    "addr",
    "mask",
    "flags",
    "state",
    "ctx",
    "priv",
    "desc",
    "ops",
    "hw",
    "phy",
    "mem",
    "map",
    "table",
    "entry",
    "block",
    "inode",
    "super",
    "dir",
    "file",
    "path",
    "name",
    "len",
    "size",
    "count",
    "index",
    "offset",
    "base",
    "limit",
    "range",
    "start",
    "stop",
    "enable",
    "disable",
    "set",
    "clear",
    "update",
    "read",
    "write",
    "alloc",
    "free",
    "get",
    "put",
    "find",
    "add",
    "remove",
    "probe",
    "attach",
    "detach",
    "bind",
    "register",
    "unregister",
    "handle",
    "event",
    "timer",
    "work",
    "task",
    "thread",
    "sched",
    "cpu",
    "core",
    "bus",
    "pci",
    "usb",
    "i2c",
    "spi",
    "gpio",
    "pwm",
    "led",
    "audio",
    "video",
    "codec",
    "frame",
    "mode",
    "rate",
    "clock",
    "power",
    "reset",
    "suspend",
    "resume",
    "wake",
    "sleep",
    "poll",
    "wait",
    "signal",
    "fault",
    "trap",
    "cache",
    "flush",
    "sync",
    "async",
    "commit",
    "journal",
    "extent",
    "bitmap",
    "group",
    "cluster",
    "sector",
    "disk",
    "volume",
    "raid",
    "stripe",
    "mirror",
    "key",
    "hash",
    "crypt",
    "cipher",
    "digest",
    "token",
    "cred",
    "user",
    "perm",
    "acl",
    "label",
    "policy",
    "rule",
    "match",
    "filter",
    "chain",
    "route",
    "neigh",
    "link",
    "iface",
    "vlan",
    "bridge",
    "tunnel",
    "packet",
    "header",
    "payload",
    "checksum",
    "proto",
    "session",
    "conn",
    "stream",
    "channel",
    "endpoint",
    "request",
    "response",
    "status",
    "error",
    "retry",
    "timeout",
    "deadline",
];

/// Lines of a file: `$v` is a variable, `$f` a function, `$t` a type, `$n` a number, `$w` a word of
/// a comment.
const LINES: &[&str] = &[
    "\t$v = $f($v, $v);\n",
    "\tif ($v < 0)\n\t\treturn $v;\n",
    "\tif (!$v->$v)\n\t\treturn -EINVAL;\n",
    "\t$v->$v = $v;\n",
    "\t$v->$v = $n;\n",
    "\n",
    "static int $f(struct $t *$v, int $v)\n{\n\tstruct $t *$v = $v->$v;\n\tint ret;\n\n",
    "\treturn 0;\n}\n\n",
    "\tret = $f($v->$v, $n, &$v);\n\tif (ret)\n\t\tgoto err_$v;\n",
    "\t/* $w $w $w $w $w $w */\n",
    "/*\n * $w $w $w $w $w $w $w $w\n * $w $w $w $w $w $w $w\n */\n",
    "#define $V_$V\t\t\t0x$n\n",
    "#define $V_$V_$V(x)\t\t(((x) & 0x$n) << $v)\n",
    "\tfor ($v = 0; $v < $v->$v; $v++)\n\t\t$f($v, $v[$v]);\n",
    "\tspin_lock_irqsave(&$v->lock, flags);\n",
    "\tdev_err($v->dev, \"$w to $w $w: %d\\n\", ret);\n",
    "struct $t {\n\tstruct list_head $v;\n\tu32 $v;\n\tunsigned long $v;\n};\n\n",
    "\t\t{ .$v = $n, .$v = \"$w-$w\", },\n",
    "\tcase $V_$V:\n\t\t$v |= $V_$V_$V;\n\t\tbreak;\n",
    "EXPORT_SYMBOL_GPL($f);\n\n",
];

/// Words of comments.
const PROSE: &[&str] = &[
    "the",
    "of",
    "a",
    "to",
    "is",
    "and",
    "we",
    "in",
    "this",
    "for",
    "be",
    "not",
    "that",
    "it",
    "if",
    "when",
    "by",
    "an",
    "on",
    "has",
    "must",
    "so",
    "before",
    "after",
    "with",
    "hardware",
    "driver",
    "value",
    "caller",
    "only",
    "device",
    "memory",
    "buffer",
    "failed",
    "invalid",
    "unable",
    "register",
    "interrupt",
    "pending",
    "already",
    "descriptor",
    "allocate",
    "transfer",
    "address",
    "supported",
    "firmware",
    "configuration",
    "returns",
];

/// Names of each kind that a file has of its own.
const VARIABLES: usize = 60;
const FUNCTIONS: usize = 24;
const TYPES: usize = 8;

/// Writes text with names of its own, like a source file.
pub(crate) struct Author {
    rng: Rng,
    variables: Vec<String>,
    functions: Vec<String>,
    types: Vec<String>,
    /// Surplus of the last line, which was longer than the rest of the file.
    rest: Vec<u8>,
}

impl Author {
    pub(crate) fn new(seed: u64) -> Author {
        let mut rng = Rng::new(seed);
        let prefix = word(&mut rng);
        let name = |rng: &mut Rng| format!("{}_{}", word(rng), word(rng));
        let variables = (0..VARIABLES).map(|index| match index % 3 {
            0 => word(&mut rng).to_owned(),
            _ => name(&mut rng),
        });
        let variables = variables.collect();
        let functions = (0..FUNCTIONS).map(|_| format!("{prefix}_{}", name(&mut rng))).collect();
        let types = (0..TYPES).map(|_| format!("{prefix}_{}", word(&mut rng))).collect();
        Author { rng, variables, functions, types, rest: Vec::new() }
    }

    /// Appends `length` bytes of text.
    pub(crate) fn write(&mut self, to: &mut Vec<u8>, length: usize) {
        let end = to.len() + length;
        to.append(&mut self.rest);
        while to.len() < end {
            self.line(to);
        }
        self.rest = to.split_off(end);
    }

    fn line(&mut self, to: &mut Vec<u8>) {
        let line = LINES[self.rng.skewed(LINES.len())].as_bytes();
        let mut parts = line.split(|&byte| byte == b'$');
        to.extend_from_slice(parts.next().unwrap_or_default());
        for part in parts {
            self.name(part[0], to);
            to.extend_from_slice(&part[1..]);
        }
    }

    fn name(&mut self, kind: u8, to: &mut Vec<u8>) {
        let rng = &mut self.rng;
        let name = match kind {
            b'v' => self.variables[rng.skewed(VARIABLES)].as_str(),
            b'f' => self.functions[rng.skewed(FUNCTIONS)].as_str(),
            b't' => self.types[rng.skewed(TYPES)].as_str(),
            b'w' => PROSE[rng.skewed(PROSE.len())],
            b'V' => word(rng),
            _ => {
                let number = rng.next() >> (40 + rng.below(20));
                return to.extend_from_slice(number.to_string().as_bytes());
            }
        };
        to.extend_from_slice(name.as_bytes());
        if kind == b'V' {
            let start = to.len() - name.len();
            to[start..].make_ascii_uppercase();
        }
    }
}

fn word(rng: &mut Rng) -> &'static str {
    WORDS[rng.below(WORDS.len())]
}
