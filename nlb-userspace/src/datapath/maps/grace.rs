//! Grace periods of the kernel's RCU, on a thread of its own, so that changes need not wait for them.
//!
//! A grace period ends when every packet that was in progress at its begin has left the programs. Tables are
//! retired at any time; the end of a grace period frees those that were retired before it began.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, Sender, channel};

/// The operations of the kernel that wait for a grace period.
pub(crate) trait Kernel: Send + 'static {
    type Slab: Send;
    type Error: Send;

    /// Waits until every packet that is in progress now has left the programs.
    fn grace(&mut self) -> Result<(), Self::Error>;

    /// Creates the slab of this number, full of empty tables. This takes a grace period too.
    fn add_slab(&mut self, number: u32) -> Result<Self::Slab, Self::Error>;
}

/// A grace period, by the order of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Epoch(u64);

enum Order {
    Grace(Epoch),
    Slab(u32),
}

enum Done<K: Kernel> {
    Grace(Epoch, Result<(), K::Error>),
    Slab(Result<K::Slab, K::Error>),
}

/// The handle of the thread. The thread ends when it is dropped.
pub(crate) struct GracePeriods<K: Kernel> {
    orders: Sender<Order>,
    done: Receiver<Done<K>>,
    last: Epoch,
    /// Results of grace periods that no caller has taken yet.
    ended: BTreeMap<Epoch, Result<(), K::Error>>,
    /// New slabs in the order of the requests.
    slabs: VecDeque<Result<K::Slab, K::Error>>,
}

impl<K: Kernel> GracePeriods<K> {
    pub(crate) fn new(mut kernel: K) -> std::io::Result<Self> {
        let (orders, ordered) = channel();
        let (tell, done) = channel();
        std::thread::Builder::new().name("nlb-grace".to_owned()).spawn(move || {
            while let Ok(order) = ordered.recv() {
                let done = match order {
                    Order::Grace(period) => Done::Grace(period, kernel.grace()),
                    Order::Slab(number) => Done::Slab(kernel.add_slab(number)),
                };
                if tell.send(done).is_err() {
                    return;
                }
            }
        })?;
        let (ended, slabs) = (BTreeMap::new(), VecDeque::new());
        Ok(GracePeriods { orders, done, last: Epoch(0), ended, slabs })
    }

    /// Requests a grace period that begins after now.
    pub(crate) fn begin(&mut self) -> Epoch {
        self.last = Epoch(self.last.0 + 1);
        self.order(Order::Grace(self.last));
        self.last
    }

    /// The result of a grace period, if it has ended. Each result is returned once.
    pub(crate) fn ended(&mut self, period: Epoch) -> Option<Result<(), K::Error>> {
        while let Ok(done) = self.done.try_recv() {
            self.take_in(done);
        }
        self.ended.remove(&period)
    }

    /// Waits for a grace period that was requested and whose result was not taken yet.
    pub(crate) fn wait(&mut self, period: Epoch) -> Result<(), K::Error> {
        loop {
            if let Some(outcome) = self.ended.remove(&period) {
                return outcome;
            }
            self.wait_for_one();
        }
    }

    pub(crate) fn order_slab(&mut self, number: u32) {
        self.order(Order::Slab(number));
    }

    /// Waits for the next slab that was requested.
    pub(crate) fn wait_for_slab(&mut self) -> Result<K::Slab, K::Error> {
        loop {
            if let Some(slab) = self.slabs.pop_front() {
                return slab;
            }
            self.wait_for_one();
        }
    }

    fn order(&self, order: Order) {
        self.orders.send(order).expect("the thread ends with the orders");
    }

    fn wait_for_one(&mut self) {
        let done = self.done.recv().expect("the thread ends with the orders");
        self.take_in(done);
    }

    fn take_in(&mut self, done: Done<K>) {
        match done {
            Done::Grace(period, outcome) => drop(self.ended.insert(period, outcome)),
            Done::Slab(slab) => self.slabs.push_back(slab),
        }
    }
}
