//! Calls that were cancelled before they began are not carried out.
//!
//! hyper checks for the cancellation of a call (RST_STREAM) only when the call waits, and tonic takes a
//! message that ends with one for complete. If the daemon was suspended, it reads a call and its cancellation
//! together. A call that changes something without having waited would then be carried out, although its
//! caller has cancelled it. Therefore every call waits once, for one poll of the runtime, between its last
//! byte and its handler.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Frame, SizeHint};
use tonic::codegen::{Service, http::Request};
use tonic::server::NamedService;

/// A service that does not begin calls that were cancelled.
#[derive(Clone)]
pub(super) struct Cancellable<S>(pub S);

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

/// The result of polling a body for a frame; `None` is its end.
type Given<B> = Option<Result<Frame<<B as Body>::Data>, <B as Body>::Error>>;

/// A body that ends one poll later than it could.
pub(super) struct Message<B: Body> {
    body: B,
    /// The body's end, while it is withheld.
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
