//! Real clients, the real daemon and real modules, in namespaces of their own: what users see.

mod abilities;
mod bulk;
mod clients;
mod fleet;
mod front;
mod health;
mod life;
mod metrics;
mod neighbours;
mod promotion;
mod replies;
mod scaling;
mod shares;
mod upcalls;
