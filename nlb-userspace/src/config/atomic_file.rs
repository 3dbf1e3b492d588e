//! Replacing a file so that whoever reads it finds it whole, also after the machine stopped meanwhile.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Many thousands of routes are megabytes.
const BUFFER: usize = 256 << 10;

/// The file is what it was, or what `write` writes. The directory is made if need be.
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
    // Else the new name might not outlive a loss of power.
    File::open(directory)?.sync_all()
}
