//! Raises the limit of open files for the daemon's sockets: each module has two connections, its own to the
//! NLB and the NLB's to it.
//!
//! The usual soft limit, 1024 open files, protects programs that use select(2), and 500 modules would reach
//! it.

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

const PER_MODULE: u64 = 2;

/// The programs, maps and listening sockets, and clients that are not modules.
const OTHER_FDS: u64 = 500;

/// Raises the soft limit to the hard one, and logs a warning if that is too low for the modules.
pub fn raise_fd_limit(max_modules: usize) -> anyhow::Result<()> {
    let limit = Resource::RLIMIT_NOFILE;
    let (_, hard) = getrlimit(limit).context("cannot read the limit of open files")?;
    setrlimit(limit, hard, hard)
        .with_context(|| format!("cannot raise the limit of open files to {hard}"))?;
    let needed = PER_MODULE * max_modules as u64 + OTHER_FDS;
    if hard < needed {
        warn!(
            "the limit of open files, {hard}, is too low for --max-modules {max_modules}: raise it to {needed} \
             (LimitNOFILE= of systemd, --ulimit nofile= of docker)"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard - 1, hard).unwrap();
        raise_fd_limit(1).unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok((hard, hard)));
    }
}
