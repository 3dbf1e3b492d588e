//! Errors of loading and attaching: retried where that helps, and otherwise reported with their remedy.

use crate::datapath::errors::error_chain;
use anyhow::anyhow;
use aya::programs::ProgramError;
use aya::util::KernelVersion;

/// The oldest kernel that is tested. It has all helpers that the programs call.
const OLDEST_KERNEL: KernelVersion = KernelVersion::new(5, 15, 0);

/// How often a program is loaded while signals interrupt the verifier.
const ATTEMPTS: usize = 10;

/// Loads a program, again if a signal interrupted the verifier: the kernel then returns EAGAIN. A signal
/// arrives whenever a child of this process ends.
pub(super) fn retry_verifier<P>(
    program: &mut P,
    load: impl Fn(&mut P) -> Result<(), ProgramError>,
) -> anyhow::Result<()> {
    let was_disturbed = |error: &ProgramError| match error {
        ProgramError::LoadError { io_error, .. } => io_error.kind() == std::io::ErrorKind::WouldBlock,
        _ => false,
    };
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        match load(program) {
            Err(error) if left > 0 && was_disturbed(&error) => {}
            ended => return ended.map_err(explain_load),
        }
    }
}

pub(super) fn explain_load(error: impl std::error::Error) -> anyhow::Error {
    let text = error_chain(&error);
    let remedy = remedy(KernelVersion::current().ok(), &text);
    anyhow!("the kernel rejected the XDP program: {}{remedy}", end_of(&text))
}

/// The remedy for a program that this kernel rejected with this text.
fn remedy(kernel: Option<KernelVersion>, text: &str) -> String {
    match kernel {
        Some(kernel) if kernel < OLDEST_KERNEL => {
            format!("\nThe NLB needs Linux {OLDEST_KERNEL} or later, and this is {kernel}.")
        }
        // The verifier also reports "permission denied" for a program that needs CAP_PERFMON.
        _ if text.contains("not permitted") || text.contains("ermission denied") => {
            "\nThe NLB needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (or CAP_SYS_ADMIN): run it as root, or as a \
             container with these capabilities."
                .to_owned()
        }
        _ => String::new(),
    }
}

/// The last lines, where the verifier names the instruction that it rejects: thousands may precede them.
fn end_of(text: &str) -> String {
    const LINES: usize = 20;
    let lines: Vec<_> = text.lines().collect();
    match lines.len().checked_sub(LINES) {
        Some(left_out @ 1..) => {
            format!("{}\n({} lines left out)\n{}", lines[0], left_out - 1, lines[left_out..].join("\n"))
        }
        _ => text.to_owned(),
    }
}

/// A veth reports this for the frames of its other end.
const LONG_FRAMES: &str = "; with this MTU, frames do not fit in one of the driver's buffers, as native XDP requires here: set a \
                           lower MTU (of a veth, at its other end), or --xdp-mode generic";

pub(super) fn explain_attach(interface: &str, error: ProgramError) -> anyhow::Error {
    let text = error_chain(&error);
    let remedy = match &error {
        ProgramError::UnknownInterface { .. } => "; `ip link` lists the interfaces",
        _ if text.contains("busy") => "; another XDP program is attached there: `ip link show` names it",
        _ if text.contains("out of range") => LONG_FRAMES,
        _ if text.contains("not supported") => "; try --xdp-mode generic",
        _ => "",
    };
    anyhow!("cannot attach to {interface}: {text}{remedy}")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use aya_obj::VerifierLog;

    use super::*;

    #[test]
    fn a_load_error_names_the_missing_kernel_or_capability() {
        let old = Some(KernelVersion::new(5, 10, 0));
        assert_eq!(
            remedy(old, "unknown func 189: Permission denied"),
            "\nThe NLB needs Linux 5.15.0 or later, and this is 5.10.0."
        );
        let new = Some(OLDEST_KERNEL);
        assert!(remedy(new, "Operation not permitted (os error 1)").contains("needs CAP_BPF"));
        assert_eq!(remedy(new, "Cannot allocate memory (os error 12)"), "");
        assert_eq!(remedy(None, "Cannot allocate memory (os error 12)"), "");
    }

    fn disturbed() -> ProgramError {
        ProgramError::LoadError {
            io_error: std::io::ErrorKind::WouldBlock.into(),
            verifier_log: VerifierLog::new(String::new()),
        }
    }

    #[test]
    fn an_interrupted_load_is_retried_a_bounded_number_of_times() {
        let attempts = Cell::new(0);
        let disturbed_times = |times: usize| {
            attempts.set(0);
            retry_verifier(&mut (), |()| {
                attempts.set(attempts.get() + 1);
                if attempts.get() <= times { Err(disturbed()) } else { Ok(()) }
            })
        };
        assert!(disturbed_times(3).is_ok());
        assert_eq!(attempts.get(), 4);
        assert!(disturbed_times(usize::MAX).is_err());
        assert_eq!(attempts.get(), ATTEMPTS);

        attempts.set(0);
        let refused = retry_verifier(&mut (), |()| {
            attempts.set(attempts.get() + 1);
            Err(ProgramError::NotLoaded)
        });
        assert!(refused.is_err() && attempts.get() == 1, "no other error is retried");
    }
}
