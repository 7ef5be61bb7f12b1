//! The options about metadata besides modes and times, with rsync's meanings.

use clap::Args;
use ksync::disk::accounts::umask;
use ksync::tree::metadata::{IdPattern, IdRule, LIST_MAX, MetadataOptions, ModeChange, NewId};

use crate::report::CliError;

/// The options about metadata.
#[derive(Debug, Args)]
#[command(next_help_heading = "Metadata (without these: modes and times, and the owner of DEST's parent)")]
// Each is an option of its own.
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct MetadataArgs {
    /// Keep owners: as the superuser, and by name
    #[arg(short = 'o', long, overrides_with = "no_owner")]
    owner: bool,
    #[arg(long, alias = "no-o", overrides_with = "owner", hide = true)]
    no_owner: bool,
    /// Keep groups: without the superuser only those that one is in
    #[arg(short = 'g', long, overrides_with = "no_group")]
    group: bool,
    #[arg(long, alias = "no-g", overrides_with = "group", hide = true)]
    no_group: bool,
    /// Owners and groups keep their numbers, whatever their names are
    #[arg(long, overrides_with = "no_numeric_ids")]
    numeric_ids: bool,
    #[arg(long, overrides_with = "numeric_ids", hide = true)]
    no_numeric_ids: bool,
    /// Give all entries this owner and group; includes -o and -g
    #[arg(long, value_name = "USER:GROUP")]
    chown: Option<String>,
    /// Map owners: NAME, number, range 0-99 or pattern, each with a colon and the new one
    #[arg(long, value_name = "FROM:TO,...", conflicts_with = "chown")]
    usermap: Option<String>,
    /// Map groups likewise
    #[arg(long, value_name = "FROM:TO,...", conflicts_with = "chown")]
    groupmap: Option<String>,
    /// Change modes on the way: D755,F644 or u=rwX,go-w; D is for directories, F for files
    #[arg(long, value_name = "CHANGES", allow_hyphen_values = true, action = clap::ArgAction::Append)]
    chmod: Vec<String>,
    #[arg(short = 'p', long, overrides_with = "no_perms", hide = true)]
    perms: bool,
    /// Leave the modes of existing entries, and give new ones what the umask allows
    #[arg(long, alias = "no-p", overrides_with = "perms")]
    no_perms: bool,
    /// With --no-perms, keep whether a file can be executed
    #[arg(short = 'E', long)]
    executability: bool,
    /// Keep hard links within SOURCE
    #[arg(short = 'H', long, overrides_with = "no_hard_links")]
    hard_links: bool,
    #[arg(long, alias = "no-H", overrides_with = "hard_links", hide = true)]
    no_hard_links: bool,
    /// Keep extended attributes: user.*, and as the superuser trusted.* and with -o security.*
    #[arg(short = 'X', long, overrides_with = "no_xattrs")]
    xattrs: bool,
    #[arg(long, alias = "no-X", overrides_with = "xattrs", hide = true)]
    no_xattrs: bool,
    /// Keep ACLs
    #[arg(short = 'A', long, overrides_with = "no_acls")]
    acls: bool,
    #[arg(long, alias = "no-A", overrides_with = "acls", hide = true)]
    no_acls: bool,
    /// Copy devices (as the superuser) and special files: --devices --specials
    #[arg(short = 'D', overrides_with = "no_both")]
    both: bool,
    #[arg(long = "no-D", overrides_with_all = ["both", "devices", "specials"], hide = true)]
    no_both: bool,
    #[arg(long, overrides_with_all = ["no_devices", "no_both"], hide = true)]
    devices: bool,
    #[arg(long, overrides_with = "devices", hide = true)]
    no_devices: bool,
    #[arg(long, overrides_with_all = ["no_specials", "no_both"], hide = true)]
    specials: bool,
    #[arg(long, overrides_with = "specials", hide = true)]
    no_specials: bool,
}

impl MetadataArgs {
    /// The options for both sides; `None` if all are off.
    pub(crate) fn options(&self) -> Result<Option<Box<MetadataOptions>>, CliError> {
        let (to_user, to_group) = self.chown.as_deref().map(chown).transpose()?.unwrap_or_default();
        let all = |to| IdRule { from: IdPattern::Name(b"*".to_vec()), to };
        let rules = |name, list: Option<&String>, of_chown: Option<NewId>| match list {
            Some(text) => IdRule::parse_list(text).map_err(|rule| {
                let told = format!("--{name} takes FROM:TO with commas in between, and not \"{rule}\"");
                CliError::usage(
                    told,
                    "As in --usermap=0-99:nobody,web:www-data; the first that matches wins.",
                )
            }),
            None => Ok(of_chown.map(all).into_iter().collect()),
        };
        let users = rules("usermap", self.usermap.as_ref(), to_user)?;
        let groups = rules("groupmap", self.groupmap.as_ref(), to_group)?;
        let umask = umask();
        let mut changes = Vec::new();
        for text in &self.chmod {
            changes.extend(ModeChange::parse_list(text, umask).map_err(|change| {
                let told = format!("--chmod takes changes of modes, and not \"{change}\"");
                CliError::usage(told, "As in --chmod=D755,F644 or --chmod=u=rwX,go-w.")
            })?);
        }
        let options = MetadataOptions {
            owner: self.owner || !users.is_empty(),
            group: self.group || !groups.is_empty(),
            numeric_ids: self.numeric_ids,
            users,
            groups,
            chmod: changes,
            // ACLs hold modes.
            no_perms: self.no_perms && !self.acls,
            executability: self.executability,
            hard_links: self.hard_links,
            xattrs: self.xattrs,
            acls: self.acls,
            devices: (self.both && !self.no_devices) || self.devices,
            specials: (self.both && !self.no_specials) || self.specials,
        };
        let lists = [options.users.len(), options.groups.len(), options.chmod.len()];
        if lists.iter().any(|length| *length > LIST_MAX) {
            let told = format!("--chmod, --usermap and --groupmap take at most {LIST_MAX} parts each");
            return Err(CliError::usage(told, "Join parts: a range or a pattern stands for many ids."));
        }
        // Without --no-perms, -E has no effect, and neither has --numeric-ids without an owner.
        let default = MetadataOptions {
            numeric_ids: options.numeric_ids,
            executability: options.executability,
            ..MetadataOptions::default()
        };
        Ok((options != default).then(|| Box::new(options)))
    }
}

/// The user and the group of `--chown`.
fn chown(text: &str) -> Result<(Option<NewId>, Option<NewId>), CliError> {
    let (user, group) = text.split_once(':').map_or((text, ""), |(user, group)| (user, group));
    let ids = (NewId::parse(user), NewId::parse(group));
    let is_valid = |part: &str, id: &Option<NewId>| part.is_empty() || id.is_some();
    if is_valid(user, &ids.0) && is_valid(group, &ids.1) && ids != (None, None) {
        return Ok(ids);
    }
    Err(CliError::usage(
        format!("--chown takes USER:GROUP, USER or :GROUP, and not \"{text}\""),
        "As in --chown=www-data:www-data.",
    ))
}
