//! `ferry install`: copies the library out of an image that has no shell and no `cp`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::{Done, cannot_be, print};

/// The name of the library in the folder.
const LIBRARY: &str = "out_ferry.so";

/// Copy the library into a folder, as an init container does
#[derive(clap::Args)]
#[command(after_help = INSTALL)]
pub(super) struct Args {
    /// The folder, such as a volume that Fluent Bit's container mounts too
    dir: PathBuf,
    /// The library to copy
    #[arg(long, default_value = "/usr/lib/fluent-bit/out_ferry.so")]
    from: PathBuf,
}

const INSTALL: &str = "\
Example:
  ferry install /plugins

The library is replaced in one step, so that a host which has loaded it keeps the one that it has.

Exit status: 0, it is there; 2, it cannot be read or written";

pub(super) fn run(args: &Args) -> Done {
    let to = args.dir.join(LIBRARY);
    // Opened first, so that the error names what is missing.
    let mut from =
        File::open(&args.from).map_err(|error| cannot_be(args.from.display(), "read", error))?;
    copy(&mut from, &to).map_err(|error| cannot_be(to.display(), "written", error))?;
    print(&format!("{}\n", to.display()))?;
    Ok(true)
}

fn copy(from: &mut File, to: &Path) -> io::Result<()> {
    let new = to.with_extension("so.new");
    let mut file = File::create(&new)?;
    io::copy(from, &mut file)?;
    file.set_permissions(from.metadata()?.permissions())?;
    file.sync_all()?;
    fs::rename(new, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_copied_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("lib.so"), dir.path().join("out_ferry.so"));
        for text in ["one", "another"] {
            fs::write(&from, text).unwrap();
            let args = Args {
                dir: dir.path().to_owned(),
                from: from.clone(),
            };
            assert!(matches!(run(&args), Ok(true)));
            assert_eq!(fs::read_to_string(&to).unwrap(), text);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else");
        for (dir, from) in [("/nowhere", from), ("/tmp", "/nowhere".into())] {
            let dir = dir.into();
            assert!(run(&Args { dir, from }).is_err());
        }
    }
}
