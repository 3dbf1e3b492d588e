//! The SDK for modules: the author writes the code that serves a connection, and the SDK registers the module
//! and answers the NLB.
//!
//! ```no_run
//! use nlb_module::{Connection, Instance, ModuleType, Protocol, Route};
//! use tokio::io::AsyncWriteExt;
//!
//! # async fn run() -> Result<(), nlb_module::Error> {
//! Instance::new("greeter-1", ModuleType::Alb)
//!     .nlb("http://10.0.0.1:50051")
//!     .listen_tcp("[::]:8080".parse().unwrap())
//!     .route(Route {
//!         route_id: "greet".into(),
//!         protocol: Protocol::Tcp.into(),
//!         destination_pattern: "192.0.2.1".into(),
//!         destination_port: 80,
//!         metadata: [("listen_port".into(), "8080".into())].into(),
//!         ..Route::default()
//!     })
//!     .run(|mut connection: Connection| async move { connection.write_all(b"hello\n").await })
//!     .await
//! # }
//! ```
//!
//! `run` registers the instance and its routes, renews the registration by heartbeats, registers again if the
//! NLB has lost it, serves `ModuleService` to the NLB, and on SIGTERM drains: the NLB sends no new flows, and
//! open ones may finish. No answer of the NLB ends `run`: a refused registration is logged as an error, and
//! tried again.
//!
//! [`Serve`] is the data path and [`Control`] the `ModuleService`, of which every call has a default.
//! [`Scaler`] is a `Control` that starts and ends further instances at the NLB's request.

// What no other crate can name is `pub(crate)`, so that the compiler reports it once nothing uses it.
#![warn(unreachable_pub)]

mod answers;
mod connection;
mod control;
mod instance;
mod latency;
mod nlb;
mod registration;
mod rpc;
mod scaler;
mod serve;
mod state;
mod tcp;
mod udp;
mod usage;
mod versions;

pub use connection::Connection;
pub use control::{Control, Origin};
pub use instance::{Error, Instance};
pub use nlb_proto::{HealthCheckConfig, HealthStatus, ModuleType, Protocol, Route};
pub use scaler::Scaler;
pub use serve::Serve;
pub use state::State;
pub use tonic::{Status, async_trait};

/// The messages of the wire contract, for authors of a [`Control`].
pub use nlb_proto as proto;

/// The program of the quickstart has to compile, too.
#[cfg(doctest)]
#[doc = include_str!("../../proto/QUICKSTART.md")]
mod quickstart {}
