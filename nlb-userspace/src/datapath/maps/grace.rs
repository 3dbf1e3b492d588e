//! What takes a grace period of the kernel's RCU, on a thread of its own, so that changes need not wait for it.
//!
//! A grace period ends when every packet that was on its way at its begin has gone. Between its end and the next begin
//! anything may have been given up, so what was given up before a period began is what its end sets free.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, Sender, channel};

/// What the kernel does for tables to find a place. It takes its time.
pub trait Kernel: Send + 'static {
    type Slab: Send;
    type Error: Send;

    /// Waits until every packet that is on its way now has gone.
    fn grace(&mut self) -> Result<(), Self::Error>;

    /// Makes the slab of this number, full of empty tables. It takes a grace period too.
    fn add_slab(&mut self, number: u32) -> Result<Self::Slab, Self::Error>;
}

/// A grace period, by the order in which they were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(u64);

enum Order {
    Grace(Epoch),
    Slab(u32),
}

enum Done<K: Kernel> {
    Grace(Epoch, Result<(), K::Error>),
    Slab(Result<K::Slab, K::Error>),
}

/// The thread's other end. The thread ends with it.
pub struct GracePeriods<K: Kernel> {
    orders: Sender<Order>,
    done: Receiver<Done<K>>,
    last: Epoch,
    /// What came of periods, until whoever asked for them knows.
    ended: BTreeMap<Epoch, Result<(), K::Error>>,
    /// In the order in which they were asked for.
    slabs: VecDeque<Result<K::Slab, K::Error>>,
}

impl<K: Kernel> GracePeriods<K> {
    pub fn new(mut kernel: K) -> std::io::Result<Self> {
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

    /// Asks for a period that begins after now.
    pub fn begin(&mut self) -> Epoch {
        self.last = Epoch(self.last.0 + 1);
        self.order(Order::Grace(self.last));
        self.last
    }

    /// What came of a period, if it has ended. Told once.
    pub fn ended(&mut self, period: Epoch) -> Option<Result<(), K::Error>> {
        while let Ok(done) = self.done.try_recv() {
            self.take_in(done);
        }
        self.ended.remove(&period)
    }

    /// Waits for a period that was asked for, and of which nothing was told yet.
    pub fn wait(&mut self, period: Epoch) -> Result<(), K::Error> {
        loop {
            if let Some(outcome) = self.ended.remove(&period) {
                return outcome;
            }
            self.wait_for_one();
        }
    }

    pub fn order_slab(&mut self, number: u32) {
        self.order(Order::Slab(number));
    }

    /// Waits for the next slab that was asked for.
    pub fn wait_for_slab(&mut self) -> Result<K::Slab, K::Error> {
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
