//! The services of the contract: one trait implementation a file, which passes each call to its handler.

/// The answer to a refused change: its response says so, and why.
macro_rules! refused {
    ($response:ident) => {
        |error: nlb_proto::Error| $response {
            message: error.message.clone(),
            error: Some(error),
            ..Default::default()
        }
    };
}

pub(crate) mod health;
pub(crate) mod module;
pub(crate) mod nlb;
pub(crate) mod operator;

/// Runs the work to its end even if the caller disconnects: half a change would leave modules and data path
/// different.
pub(super) async fn to_the_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    tokio::spawn(work).await.expect("the call does not panic")
}
