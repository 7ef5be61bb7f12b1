//! `MetadataOptions`: the metadata that a run copies besides modes and times, and the changes that
//! it makes to it on the way.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::tree::attributes::Compared;
use crate::tree::glob::{Glob, bytes_of};

/// Most changes of one `--chmod`, and most rules of one `--usermap`.
pub const LIST_MAX: usize = 1 << 10;

/// Longest name of a user or group in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// Options about metadata. All of them are off in a run that only copies modes and times.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
// Each is an option of its own.
#[allow(clippy::struct_excessive_bools)]
pub struct MetadataOptions {
    /// Copy owners.
    pub owner: bool,
    /// Copy groups.
    pub group: bool,
    /// Users and groups keep their numbers, whatever their names are.
    pub numeric_ids: bool,
    /// Rules that map users; the first that matches wins.
    pub users: Vec<IdRule>,
    /// Rules that map groups.
    pub groups: Vec<IdRule>,
    /// Changes of modes.
    pub chmod: Vec<ModeChange>,
    /// Leave the modes of existing files, and give new ones what the umask allows.
    pub no_perms: bool,
    /// With `no_perms`: copy whether a file can be executed.
    pub executability: bool,
    /// Files with several names in the source have several names in the destination.
    pub hard_links: bool,
    /// Copy extended attributes.
    pub xattrs: bool,
    /// Copy ACLs.
    pub acls: bool,
    /// Copy devices.
    pub devices: bool,
    /// Copy named pipes and sockets.
    pub specials: bool,
}

impl MetadataOptions {
    /// True if lists and names are as short as they must be.
    #[must_use]
    pub fn is_within_limits(&self) -> bool {
        let fits = |rules: &[IdRule]| rules.len() <= LIST_MAX && rules.iter().all(IdRule::is_within_limits);
        fits(&self.users) && fits(&self.groups) && self.chmod.len() <= LIST_MAX
    }

    /// The extended attributes that a comparison looks at.
    #[must_use]
    pub fn compared(&self) -> Compared {
        Compared { xattrs: self.xattrs, acls: self.acls }
    }

    /// True if entries have attributes.
    #[must_use]
    pub fn has_attributes(&self) -> bool {
        self.owner
            || self.group
            || self.hard_links
            || self.xattrs
            || self.acls
            || self.devices
            || self.specials
    }

    /// True if ids must be mapped by their names.
    #[must_use]
    pub fn has_names(&self) -> bool {
        !self.numeric_ids && (self.owner || self.group || self.acls)
    }

    /// The mode after all changes.
    #[must_use]
    pub fn mode(&self, mode: u16, is_directory: bool) -> u16 {
        ModeChange::apply(&self.chmod, mode, is_directory)
    }
}

/// The entries that a mode change is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Affects {
    /// All entries.
    #[default]
    All,
    /// Directories.
    Directories,
    /// All entries that are no directories.
    Files,
}

/// One change of `--chmod`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ModeChange {
    /// The entries that change.
    pub affects: Affects,
    /// Bits that stay.
    pub keep: u16,
    /// Bits that are set.
    pub set: u16,
    /// Set execute bits only on directories, and where one was set before (`X`).
    pub only_executable: bool,
    /// Set or clear the bits that others of the entry have (`g=u`).
    pub copy: Option<CopyBits>,
}

/// Permission bits that one of user, group and others has, for others of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyBits {
    /// Position of the three bits in a mode: 6, 3 or 0.
    pub from: u8,
    /// The bits that may change.
    pub mask: u16,
    /// Clear the bits that were found.
    pub clears: bool,
}

impl CopyBits {
    /// The bits of this mode that are set or cleared.
    fn of(self, mode: u16) -> u16 {
        (((mode >> self.from.min(6)) & 7) * 0o111) & self.mask
    }
}

impl ModeChange {
    /// Parses the list of changes of `--chmod`. Without letters for user, group or others the umask
    /// limits a change, as with chmod(1).
    ///
    /// # Errors
    /// The change that has another form.
    pub fn parse_list(text: &str, umask: u16) -> Result<Vec<Self>, String> {
        text.split(',').map(|item| Self::parse(item, umask).ok_or_else(|| item.to_owned())).collect()
    }

    /// Parses one change: `D755`, `Fu=rw`, `go-w`, `a+X`.
    fn parse(item: &str, umask: u16) -> Option<Self> {
        let mut change = Self { keep: 0o7777, ..Self::default() };
        let mut letters = item.chars().peekable();
        // The set-id bits of the named users, and a multiplier that places three bits for each.
        let (mut special, mut places) = (0, 0_u16);
        let sign = loop {
            match letters.next()? {
                'D' if change.affects != Affects::Files => change.affects = Affects::Directories,
                'F' if change.affects != Affects::Directories => change.affects = Affects::Files,
                'u' => (places, special) = (places | 0o100, special | 0o4000),
                'g' => (places, special) = (places | 0o010, special | 0o2000),
                'o' => places |= 0o001,
                'a' => places |= 0o111,
                sign @ ('+' | '-' | '=') => break sign,
                digit @ '0'..='7' if places == 0 => {
                    let rest: String = letters.collect();
                    let number = u16::from_str_radix(&format!("{digit}{rest}"), 8).ok()?;
                    let is_valid = number <= 0o7777 && rest.chars().all(|digit| digit.is_digit(8));
                    return is_valid.then_some(Self { keep: 0, set: number, ..change });
                }
                _ => return None,
            }
        };
        if let Some(from) = letters.peek().and_then(|class| ['o', 'g', 'u'].iter().position(|of| of == class))
        {
            let all = if places == 0 { 0o777 & !umask } else { places * 7 };
            change.copy = Some(CopyBits { from: from as u8 * 3, mask: all, clears: sign == '-' });
            letters.next();
            if sign == '=' {
                // As rsync, such a change clears the set-id bits of those that it names.
                let named = if places == 0 { 0o111 } else { places };
                let of_user = if named & 0o100 == 0 { 0 } else { 0o4000 };
                let of_group = if named & 0o010 == 0 { 0 } else { 0o2000 };
                change.keep = 0o7777 & !(of_user | of_group | (named * 7));
            }
            return letters.next().is_none().then_some(change);
        }
        let (mut what, mut top) = (0_u16, 0);
        for letter in letters {
            match letter {
                'r' => what |= 4,
                'w' => what |= 2,
                'x' => what |= 1,
                'X' => (what, change.only_executable) = (what | 1, true),
                's' => top |= if special == 0 { 0o4000 } else { special },
                't' => top |= 0o1000,
                _ => return None,
            }
        }
        let bits = if places == 0 { (0o111 * what) & !umask } else { places * what };
        let all = if places == 0 { 0o111 } else { places } * 7;
        match sign {
            '+' => change.set = bits | top,
            '-' => change.keep = 0o7777 & !(bits | top),
            _ => {
                change.keep = 0o7777 & !(all | if top == 0 { 0 } else { special });
                change.set = bits | top;
            }
        }
        Some(change)
    }

    /// The mode after these changes.
    #[must_use]
    pub fn apply(changes: &[Self], mode: u16, is_directory: bool) -> u16 {
        let was_executable = mode & 0o111 != 0;
        let affects = |change: &&Self| match change.affects {
            Affects::All => true,
            Affects::Directories => is_directory,
            Affects::Files => !is_directory,
        };
        changes.iter().filter(affects).fold(mode, |mode, change| {
            let hidden = if change.only_executable && !was_executable && !is_directory { 0o111 } else { 0 };
            let (sets, clears) = match change.copy {
                None => (0, 0),
                Some(copy) if copy.clears => (0, copy.of(mode)),
                Some(copy) => (copy.of(mode), 0),
            };
            let kept = mode & change.keep & !clears;
            kept & 0o7777 | (change.set & !hidden | sets) & 0o7777
        })
    }
}

/// The users or groups that a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdPattern {
    /// All ids of a range.
    Range(u32, u32),
    /// A name, in which `*`, `?` and `[` are wildcards. The empty name is that of all ids without
    /// one.
    Name(#[serde(with = "serde_bytes")] Vec<u8>),
}

/// A user or group of the receiver's machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewId {
    /// By number.
    Number(u32),
    /// By name.
    Name(ByteBuf),
}

/// One rule of `--usermap` or `--groupmap`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRule {
    /// The ids of the source.
    pub from: IdPattern,
    /// The id in the destination.
    pub to: NewId,
}

impl IdRule {
    /// Parses a list of rules, `FROM:TO,FROM:TO`.
    ///
    /// # Errors
    /// The rule that has another form.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        text.split(',').map(|rule| Self::parse(rule).ok_or_else(|| rule.to_owned())).collect()
    }

    fn parse(rule: &str) -> Option<Self> {
        let (from, to) = rule.split_once(':')?;
        let is_number = |text: &str| !text.is_empty() && text.chars().all(|digit| digit.is_ascii_digit());
        let from = match from.split_once('-') {
            Some((low, high)) if is_number(low) && is_number(high) => {
                IdPattern::Range(low.parse().ok()?, high.parse().ok()?)
            }
            None if is_number(from) => IdPattern::Range(from.parse().ok()?, from.parse().ok()?),
            _ => IdPattern::Name(from.as_bytes().to_vec()),
        };
        Some(Self { from, to: NewId::parse(to)? })
    }

    fn is_within_limits(&self) -> bool {
        let from = if let IdPattern::Name(name) = &self.from { name.len() } else { 0 };
        let to = if let NewId::Name(name) = &self.to { name.len() } else { 0 };
        from.max(to) <= NAME_BYTES_MAX && self.to != NewId::Number(u32::MAX)
    }

    /// True if the rule is about this id, which has this name on the sender's machine.
    #[must_use]
    pub fn matches(&self, id: u32, name: &[u8]) -> bool {
        match &self.from {
            IdPattern::Range(low, high) => (*low..=*high).contains(&id),
            IdPattern::Name(pattern) => {
                let is_wild = pattern.iter().any(|byte| b"*[?".contains(byte));
                let held = bytes_of(name);
                is_wild && Glob::rsync(pattern, false).matches(name, || &held) || pattern == name
            }
        }
    }
}

impl NewId {
    /// Parses a name or a number; the empty text is neither.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() || text.len() > NAME_BYTES_MAX {
            return None;
        }
        if text.chars().all(|digit| digit.is_ascii_digit()) {
            return text.parse().ok().filter(|id| *id != u32::MAX).map(Self::Number);
        }
        Some(Self::Name(ByteBuf::from(text.as_bytes())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chmod_changes_modes_as_rsync_does() {
        for (changes, before, is_directory, after) in [
            ("D755,F644", 0o600, false, 0o644),
            ("D755,F644", 0o700, true, 0o755),
            ("u=rw,go=r", 0o755, false, 0o644),
            ("a+X", 0o644, false, 0o644),
            ("a+X", 0o744, false, 0o755),
            ("a+X", 0o644, true, 0o755),
            ("go-w", 0o666, false, 0o644),
            ("+w", 0o444, false, 0o644),
            ("Dg+s", 0o755, true, 0o2755),
            ("u+s,+t", 0o755, false, 0o5755),
            ("ug+s", 0o755, false, 0o6755),
            ("u=s", 0o755, false, 0o4055),
            ("0", 0o755, false, 0),
            ("Fu=,og+x", 0o644, false, 0o055),
            ("g=u", 0o640, false, 0o660),
            ("go=u", 0o700, true, 0o777),
            ("g=u", 0o6711, false, 0o4771),
            ("a=u", 0o6711, false, 0o777),
            ("o+g", 0o654, false, 0o655),
            ("g-o", 0o755, false, 0o705),
        ] {
            let changes = ModeChange::parse_list(changes, 0o022).unwrap();
            assert_eq!(ModeChange::apply(&changes, before, is_directory), after, "{changes:?}");
        }
    }

    #[test]
    fn chmod_of_another_form_is_refused() {
        for text in ["", "u", "u+q", "9", "755x", "DF644", "u755", "17777", "u+w,", "rw", "g=uo", "g=ur"] {
            assert!(ModeChange::parse_list(text, 0).is_err(), "{text}");
        }
    }

    #[test]
    fn id_rules_match_names_numbers_and_ranges() {
        let rule = |text: &str| IdRule::parse(text).unwrap();
        assert!(rule("*:1").matches(5, b"") && rule("*:1").matches(5, b"me"));
        assert!(rule("m?:1").matches(5, b"me") && !rule("m?:1").matches(5, b"you"));
        assert!(rule("1-5:9").matches(5, b"") && !rule("1-5:9").matches(6, b""));
        assert!(rule("7:me").matches(7, b"x") && rule(":1").matches(3, b"") && !rule(":1").matches(3, b"x"));
        for text in ["", "a", "a:", "1:", "1:99999999999"] {
            assert!(IdRule::parse(text).is_none(), "{text}");
        }
    }
}
