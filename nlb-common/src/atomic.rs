//! A shared 64-bit word with compare-and-exchange on every target.
//!
//! For the host this is `AtomicU64`, or loom's, which tries every interleaving. For BPF it is neither: the
//! compiler's description of the target has no compare-and-exchange, which BPF has had since Linux 5.12, and
//! the code generator for BPF has no relaxed loads. On that target an aligned 64-bit load or store is one
//! instruction, so volatile accesses are what atomics would compile to, and the intrinsic of
//! `compare_exchange` works.

#[cfg(not(target_arch = "bpf"))]
mod word {
    #[cfg(not(loom))]
    use core::sync::atomic::{AtomicU64, Ordering};

    #[cfg(loom)]
    use loom::sync::atomic::{AtomicU64, Ordering};

    #[repr(transparent)]
    #[derive(Default)]
    pub struct Word(AtomicU64);

    // The orders of every load and store on x86, for which the BPF programs are made (Sewell et al.,
    // "x86-TSO", CACM 53(7), 2010).
    impl Word {
        #[cfg(not(loom))]
        pub const fn new(value: u64) -> Self {
            Word(AtomicU64::new(value))
        }

        #[inline]
        pub fn load(&self) -> u64 {
            self.0.load(Ordering::Acquire)
        }

        #[inline]
        pub fn store(&self, value: u64) {
            self.0.store(value, Ordering::Release);
        }

        /// Stores `new` if the word is `old`; returns whether it was.
        #[inline]
        pub fn exchange(&self, old: u64, new: u64) -> bool {
            self.0.compare_exchange(old, new, Ordering::SeqCst, Ordering::Acquire).is_ok()
        }
    }
}

#[cfg(target_arch = "bpf")]
mod word {
    use core::cell::UnsafeCell;
    use core::intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg};

    #[repr(transparent)]
    #[derive(Default)]
    pub struct Word(UnsafeCell<u64>);

    impl Word {
        #[inline(always)]
        pub const fn new(value: u64) -> Self {
            Word(UnsafeCell::new(value))
        }

        #[inline(always)]
        pub fn load(&self) -> u64 {
            // SAFETY: valid and aligned, since it comes from a reference; one instruction, so never torn.
            unsafe { self.0.get().read_volatile() }
        }

        #[inline(always)]
        pub fn store(&self, value: u64) {
            // SAFETY: as for `load`.
            unsafe { self.0.get().write_volatile(value) }
        }

        /// Stores `new` if the word is `old`; returns whether it was.
        #[inline(always)]
        pub fn exchange(&self, old: u64, new: u64) -> bool {
            // SAFETY: as for `load`.
            unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(self.0.get(), old, new).1 }
        }
    }
}

pub use word::Word;

/// Keeps loads and stores on their side of this point. It binds the compiler only: x86 keeps the order among
/// loads and among stores, and BPF has no fence instruction.
#[inline(always)]
pub fn fence() {
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
}
