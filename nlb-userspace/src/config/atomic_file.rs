//! Replaces a file atomically: a reader finds the old or the new content, also after a crash of the machine.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Many thousands of routes are megabytes.
const BUFFER: usize = 256 << 10;

/// Replaces the file by what `write` writes; after an error it is unchanged. The directory is created if it
/// is missing.
pub fn replace(
    directory: &Path,
    name: &str,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let draft = directory.join(format!("{name}.new"));
    let mut file = BufWriter::with_capacity(BUFFER, File::create(&draft)?);
    write(&mut file)?;
    file.flush()?;
    file.get_ref().sync_all()?;
    fs::rename(draft, directory.join(name))?;
    // Without this, the new name may be lost with the power.
    File::open(directory)?.sync_all()
}
