//! Calls that were cancelled before they began are not carried out.
//!
//! hyper looks for the cancellation of a call (RST_STREAM) only when the call waits, and tonic takes a message that ends with
//! one for complete. After a standstill of the daemon a call and its cancellation are read together. A call that changes
//! something without having waited would then be carried out, although its caller has given it up. So every call waits once,
//! for one turn of the runtime, between its last byte and its handler.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Frame, SizeHint};
use tonic::codegen::{Service, http::Request};
use tonic::server::NamedService;

/// A service whose calls begin only if they are still wanted.
#[derive(Clone)]
pub struct Cancellable<S>(pub S);

impl<S: NamedService> NamedService for Cancellable<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<Request<B>> for Cancellable<S>
where
    S: Service<Request<Message<B>>>,
    B: Body,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
        self.0.call(request.map(|body| Message { body, end: None }))
    }
}

/// What a body gives when it is asked for a frame; `None` is its end.
type Given<B> = Option<Result<Frame<<B as Body>::Data>, <B as Body>::Error>>;

/// A body that ends one turn later than it could.
pub struct Message<B: Body> {
    body: B,
    /// How it ends, while that is withheld.
    end: Option<Given<B>>,
}

impl<B> Body for Message<B>
where
    B: Body + Unpin,
    B::Data: Unpin,
    B::Error: Unpin,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Given<B>> {
        if let Some(end) = self.end.take() {
            return Poll::Ready(end);
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if matches!(&frame, Some(Ok(frame)) if frame.is_data()) {
            return Poll::Ready(frame);
        }
        self.end = Some(frame);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
