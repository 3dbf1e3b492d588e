//! Real clients, the real daemon and real modules, in namespaces of their own: what users see.

mod abilities;
mod active;
mod bulk;
mod clients;
mod exact;
mod fleet;
mod front;
mod health;
mod life;
mod metrics;
mod neighbours;
mod persistence;
mod promotion;
mod quickstart;
mod replies;
mod scaling;
mod shares;
mod upcalls;
mod wire;
