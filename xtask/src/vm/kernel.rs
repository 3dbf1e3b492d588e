//! Kernels for virtual machines: distributions' packages, with the kernel's modules and busybox.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::image;
use super::packages::{Archive, entries, output};
use crate::workspace;

pub struct Kernel {
    pub version: &'static str,
    /// The distribution's release.
    release: Release,
}

enum Release {
    Debian(&'static str),
    Ubuntu(&'static str),
}

pub const ALL: &[Kernel] = &[
    Kernel { version: "5.15", release: Release::Ubuntu("jammy") },
    Kernel { version: "6.1", release: Release::Debian("bookworm") },
    Kernel { version: "6.12", release: Release::Debian("trixie") },
];

const KEYRINGS: &str = "usr/share/keyrings";

pub fn find(version: &str) -> Result<&'static Kernel> {
    ALL.iter().find(|kernel| kernel.version == version).with_context(|| {
        let versions: Vec<_> = ALL.iter().map(|kernel| kernel.version).collect();
        format!("known versions: {}", versions.join(", "))
    })
}

impl Kernel {
    /// The directory of this kernel. To fetch the kernel again, remove it.
    pub fn dir(&self) -> PathBuf {
        workspace::root().join("target/kernels").join(self.version)
    }

    pub fn vmlinuz(&self) -> PathBuf {
        self.dir().join("vmlinuz")
    }

    pub fn busybox(&self) -> PathBuf {
        self.dir().join("busybox")
    }

    /// The archive of all files that do not depend on the program to run.
    pub fn base(&self) -> PathBuf {
        self.dir().join("base.cpio")
    }

    pub fn fetch(&self) -> Result<()> {
        if self.base().is_file() {
            return Ok(());
        }
        eprintln!("Fetching Linux {}", self.version);
        let (packages, root) = (self.dir().join("packages"), self.dir().join("root"));
        remove(&packages)?;
        remove(&root)?;
        let archive = self.release.open(&packages)?;
        self.download(&archive)?;
        archive.unpack(&root)?;
        self.arrange(&root)?;
        // Written last: this file marks the others as complete.
        let unfinished = self.dir().join("base.part");
        image::archive(&self.busybox(), &root, &unfinished)?;
        fs::rename(unfinished, self.base())?;
        remove(&packages)?;
        remove(&root)
    }

    fn download(&self, archive: &Archive) -> Result<()> {
        let image = archive.first_dependency(self.release.newest())?;
        ensure!(
            image.starts_with(&format!("linux-image-{}.", self.version)),
            "the newest kernel of that release is {image}, which is not Linux {}",
            self.version
        );
        let modules = image.replace("linux-image", "linux-modules");
        match self.release {
            Release::Debian(_) => archive.download(&[&image, "busybox-static"]),
            Release::Ubuntu(_) => archive.download(&[&image, &modules, "busybox-static"]),
        }
    }

    /// Leaves modules and busybox in `root`, and moves the kernel out of it.
    fn arrange(&self, root: &Path) -> Result<()> {
        // Newer releases have all files below /usr.
        for path in ["bin/busybox", "lib/modules"] {
            let (old, new) = (root.join("usr").join(path), root.join(path));
            if old.exists() {
                fs::create_dir_all(new.parent().expect("below root"))?;
                fs::rename(old, new)?;
            }
        }
        let image = entries(&root.join("boot"))?
            .into_iter()
            .find(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
            .context("the kernel's package has no boot/vmlinuz-*")?;
        fs::rename(image, self.vmlinuz())?;
        fs::copy(root.join("bin/busybox"), self.busybox()).context("copying busybox")?;
        for unneeded in ["boot", "usr"] {
            remove(&root.join(unneeded))?;
        }
        let modules = entries(&root.join("lib/modules"))?;
        let [release] = &modules[..] else {
            bail!("the kernel's package has not one directory in lib/modules")
        };
        // Debian does this when it installs the package.
        let release = release.file_name().expect("an entry has a name");
        output(Command::new(self.busybox()).args(["depmod", "-b"]).arg(root).arg(release)).map(drop)
    }
}

impl Release {
    fn open(&self, dir: &Path) -> Result<Archive> {
        match self {
            Release::Debian(suite) => Archive::open(
                dir,
                &Path::new("/").join(KEYRINGS).join("debian-archive-keyring.gpg"),
                &[
                    format!("http://deb.debian.org/debian {suite}"),
                    format!("http://deb.debian.org/debian-security {suite}-security"),
                ],
            ),
            Release::Ubuntu(suite) => {
                // Debian has a package with Ubuntu's keys, and signs it.
                let (keys, root) = (dir.join("keys"), dir.join("keys/root"));
                let debian = Release::Debian("trixie").open(&keys)?;
                debian.download(&["ubuntu-keyring"])?;
                debian.unpack(&root)?;
                Archive::open(
                    dir,
                    &root.join(KEYRINGS).join("ubuntu-archive-keyring.gpg"),
                    &["", "-updates", "-security"]
                        .map(|pocket| format!("http://archive.ubuntu.com/ubuntu {suite}{pocket}")),
                )
            }
        }
    }

    /// The package that depends on the newest kernel, of the smallest flavour that suits virtual machines.
    fn newest(&self) -> &'static str {
        match self {
            Release::Debian(_) => "linux-image-cloud-amd64",
            Release::Ubuntu(_) => "linux-image-virtual",
        }
    }
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}
