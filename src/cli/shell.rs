//! `ferry completions` and `ferry man`: shell completions and manual pages, which the packages contain.

use std::io;
use std::path::PathBuf;

use clap_complete::Shell;

use super::{Done, cannot_be, print};

/// Print the completions of the commands for a shell
#[derive(clap::Args)]
#[command(after_help = COMPLETIONS)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

const COMPLETIONS: &str = "\
Example:
  ferry completions bash >/etc/bash_completion.d/ferry

Exit status: 0, they are printed; 2, the shell is not supported";

/// Write the manual pages, one for each command, into a folder
#[derive(clap::Args)]
#[command(after_help = MAN)]
pub(super) struct Man {
    /// The folder; it is created if it does not exist
    dir: PathBuf,
}

const MAN: &str = "\
Example:
  ferry man /usr/local/share/man/man1

Exit status: 0, they are written; 2, they cannot be written";

pub(super) fn completions(args: &Completions, command: &mut clap::Command) -> Done {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, command, "ferry", &mut text);
    print(&String::from_utf8_lossy(&text))?;
    Ok(true)
}

pub(super) fn man(args: &Man, mut command: clap::Command) -> Done {
    command.build();
    let written = std::fs::create_dir_all(&args.dir).and_then(|()| pages(&command, &args.dir));
    written.map_err(|error| cannot_be(args.dir.display(), "written", error))?;
    Ok(true)
}

/// Writes the page of a command and those of its subcommands, such as `ferry-spool-verify.1`.
fn pages(command: &clap::Command, dir: &std::path::Path) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let mut page = Vec::new();
    // Without a date the pages are reproducible.
    clap_mangen::Man::new(command.clone())
        .date("")
        .source(concat!("ferry ", env!("CARGO_PKG_VERSION")))
        .manual("Ferry")
        .render(&mut page)?;
    std::fs::write(dir.join(format!("{name}.1")), page)?;
    command
        .get_subcommands()
        .filter(|sub| sub.get_name() != "help")
        .try_for_each(|sub| pages(sub, dir))
}
