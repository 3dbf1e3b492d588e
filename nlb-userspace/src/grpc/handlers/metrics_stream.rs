//! A stream of metrics views at an interval, for as long as the subscriber keeps up.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tonic::Status;

use crate::telemetry::metrics::{Metrics, View};

/// Messages that may wait for a subscriber, besides those that the transport holds.
const WAITING: usize = 4;

const HALF_A_SECOND: Duration = Duration::from_millis(500);

/// The subscriber's end of a stream. Once the stream has ended, waiting messages are not sent any more.
pub struct Subscription<T> {
    messages: mpsc::Receiver<T>,
    end: Option<oneshot::Receiver<Status>>,
}

impl<T: Send + 'static> Subscription<T> {
    /// Renders the current view, and then one every `interval` seconds. All subscribers share the recorder's
    /// seconds, so the first interval may differ by half a second. An error of `render` ends the stream.
    pub fn start<R: Future<Output = Result<T, Status>> + Send>(
        metrics: Metrics,
        interval: u64,
        render: impl Fn(View) -> R + Send + 'static,
    ) -> Subscription<T> {
        let (sender, messages) = mpsc::channel(WAITING);
        let (ended, end) = oneshot::channel();
        tokio::spawn(async move {
            let why = follow(metrics, interval, render, sender).await;
            // The receiver is gone if the subscriber has left.
            let _ = why.map(|why| ended.send(why));
        });
        Subscription { messages, end: Some(end) }
    }
}

/// Returns why the stream ended, or `None` if the subscriber has left.
async fn follow<T, R: Future<Output = Result<T, Status>>>(
    metrics: Metrics,
    interval: u64,
    render: impl Fn(View) -> R,
    sender: mpsc::Sender<T>,
) -> Option<Status> {
    let mut views = metrics.views();
    // The newest view may be nearly a second old: its interval begins with the nearest second.
    let mut late = u64::from(metrics.view().at.elapsed() >= HALF_A_SECOND);
    let mut due = 0;
    loop {
        let view = views.borrow_and_update().clone();
        if view.latest.second >= due {
            due = view.latest.second + interval + std::mem::take(&mut late);
            let rendered = match render(view).await {
                Ok(rendered) => rendered,
                Err(status) => return Some(status),
            };
            match sender.try_send(rendered) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Closed(_)) => return None,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    let why =
                        format!("{WAITING} messages wait to be read; read faster, or ask for fewer metrics");
                    return Some(Status::resource_exhausted(why));
                }
            }
        }
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return Some(stopping()) },
            () = metrics.closed() => return Some(stopping()),
            () = sender.closed() => return None,
        }
    }
}

fn stopping() -> Status {
    Status::unavailable("the NLB is stopping; subscribe again later")
}

impl<T> Stream for Subscription<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Self::Item>> {
        let Some(end) = &mut self.end else { return Poll::Ready(None) };
        if let Poll::Ready(end) = Pin::new(end).poll(context) {
            self.end = None;
            return Poll::Ready(end.ok().map(Err));
        }
        match self.messages.poll_recv(context) {
            Poll::Ready(Some(message)) => Poll::Ready(Some(Ok(message))),
            // The stream ends once the reason is known.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use tokio::sync::watch;
    use tokio::time::Instant;
    use tokio_stream::StreamExt as _;
    use tonic::Code;

    use super::*;
    use crate::registry::fixtures::registry;
    use crate::telemetry::metrics::{Recorder, Sources};

    fn recording() -> (Metrics, tokio::task::JoinHandle<()>) {
        let sources = Sources {
            registry: Arc::new(registry()),
            applied: watch::channel(Arc::default()).1,
            traffic: watch::channel(Arc::default()).1,
            started_at: SystemTime::now(),
        };
        let (recorder, metrics) = Recorder::new(sources, 1 << 20);
        let task = tokio::spawn(async move { match recorder.run().await {} });
        (metrics, task)
    }

    fn seconds(metrics: &Metrics, interval: u64) -> Subscription<u64> {
        Subscription::start(metrics.clone(), interval, |view| std::future::ready(Ok(view.latest.second)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_subscribers_keep_their_interval() {
        let (metrics, _recorder) = recording();
        let mut subscribers = tokio::task::JoinSet::new();
        for n in 0..100_u64 {
            let interval = n % 3 + 1;
            let stream = seconds(&metrics, interval);
            subscribers.spawn(async move {
                let got: Vec<u64> = stream.take(10).map(|second| second.unwrap()).collect().await;
                assert_eq!(got, (0..10).map(|message| message * interval).collect::<Vec<_>>());
            });
        }
        while let Some(done) = subscribers.join_next().await {
            done.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_interval_is_as_long_as_the_others() {
        let (metrics, _recorder) = recording();
        for (late, interval) in [(100, 1), (400, 1), (600, 1), (900, 1), (900, 3)] {
            let mut views = metrics.views();
            views.changed().await.unwrap();
            tokio::time::sleep(Duration::from_millis(late)).await;
            let mut stream = seconds(&metrics, interval);
            let begun = Instant::now();
            assert!(stream.next().await.unwrap().is_ok());
            assert!(begun.elapsed() < Duration::from_millis(10), "the first message comes at once");
            assert!(stream.next().await.unwrap().is_ok());
            let off = begun.elapsed().abs_diff(Duration::from_secs(interval));
            assert!(off <= Duration::from_millis(510), "{late} ms late, every {interval} s: off by {off:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscriber_that_does_not_read_is_dropped() {
        let (metrics, _recorder) = recording();
        let mut slow = seconds(&metrics, 1);
        let mut quick = seconds(&metrics, 1);
        for second in 0..=WAITING as u64 {
            assert_eq!(quick.next().await.unwrap().unwrap(), second);
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        let status = slow.next().await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(slow.next().await.is_none());
        assert!(quick.next().await.unwrap().is_ok(), "other subscribers are not affected");
    }

    #[tokio::test(start_paused = true)]
    async fn streams_end_with_the_daemon() {
        let (metrics, recorder) = recording();
        let (mut open, mut deserted) = (seconds(&metrics, 1), seconds(&metrics, 1));
        assert!(open.next().await.unwrap().is_ok() && deserted.next().await.unwrap().is_ok());
        metrics.close();
        assert_eq!(open.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
        let mut late = seconds(&metrics, 1);
        while let Some(Ok(_)) = late.next().await {}
        recorder.abort();
        while let Some(Ok(_)) = deserted.next().await {}
        assert!(deserted.next().await.is_none());
    }
}
