//! Who is connected, and who of them can be asked to leave.
//!
//! Connections have as many seats as [`ServerLimits::max_connections`](super::ServerLimits::max_connections). One that has no
//! request under way is idle: it has not said all of what it wants yet, or has its answer and is kept for the next. A request
//! is under way once all of it has been read, its body too. When the seats are taken and somebody knocks, the one that has
//! been idle longest is closed, counted from its last answer or from the head of its request. So clients that connect and say
//! nothing, or say it slowly, do not keep others out; only requests that are being answered do. One that has just come, or whose
//! head has, is left alone for a moment ([`GRACE`]): what it wants may be on its way.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How long a client has for what it wants to say before its seat may be another's.
const GRACE: Duration = Duration::from_millis(500);

/// All seats.
#[derive(Clone)]
pub(super) struct Seats {
    free: Arc<Semaphore>,
    idle: Arc<Idle>,
}

#[derive(Default)]
struct Idle {
    list: Mutex<IdleList>,
    /// Somebody became idle.
    joined: Notify,
}

#[derive(Default)]
struct IdleList {
    /// Counts up, so that the least is the one that has been idle longest.
    next: u64,
    by_age: BTreeMap<u64, Waiting>,
}

/// An idle connection.
struct Waiting {
    closed: CancellationToken,
    /// When its seat may be another's.
    grace_ends: Instant,
}

impl Idle {
    fn lock(&self) -> MutexGuard<'_, IdleList> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, closed: CancellationToken, grace: Duration) -> u64 {
        let mut list = self.lock();
        let number = list.next;
        list.next += 1;
        list.by_age.insert(number, Waiting { closed, grace_ends: Instant::now() + grace });
        drop(list);
        self.joined.notify_one();
        number
    }

    /// Whether it was still there.
    fn remove(&self, number: u64) -> bool {
        self.lock().by_age.remove(&number).is_some()
    }

    /// Closes the one that has been idle longest of those that are not left alone.
    fn close_oldest(&self) -> Eviction {
        let mut list = self.lock();
        let now = Instant::now();
        let oldest = list.by_age.iter().find(|(_, waiting)| waiting.grace_ends <= now).map(|(&number, _)| number);
        match oldest.and_then(|number| list.by_age.remove(&number)) {
            Some(waiting) => {
                waiting.closed.cancel();
                Eviction::Closed
            }
            None => Eviction::NoneBefore(list.by_age.values().map(|waiting| waiting.grace_ends).min()),
        }
    }
}

/// What became of looking for somebody to leave.
enum Eviction {
    Closed,
    /// All that are idle, if any, are left alone until then.
    NoneBefore(Option<Instant>),
}

impl Seats {
    pub(super) fn new(n: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(n)), idle: Arc::new(Idle::default()) }
    }

    /// A seat, somebody else's if there is no other way.
    ///
    /// # Cancel safety
    /// Dropping the future takes no seat; at most one idle connection has been closed for nothing.
    pub(super) async fn take(&self) -> Seat {
        let permit = loop {
            if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
                break permit;
            }
            // Where nobody can be asked to leave, the first that can leaves, unless a seat is free before.
            let (evicted, next) = match self.idle.close_oldest() {
                Eviction::Closed => (true, None),
                Eviction::NoneBefore(next) => (false, next),
            };
            let grace_ends = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                permit = Arc::clone(&self.free).acquire_owned() => match permit {
                    Ok(permit) => break permit,
                    // The semaphore is never closed.
                    Err(_) => std::future::pending().await,
                },
                () = self.idle.joined.notified(), if !evicted => {}
                () = grace_ends => {}
            }
        };
        let closed = CancellationToken::new();
        let number = self.idle.add(closed.clone(), GRACE);
        let (idle, number) = (Arc::clone(&self.idle), Mutex::new(Some(number)));
        Seat(Arc::new(Held { idle, number, closed, is_under_way: watch::Sender::new(false), _permit: permit }))
    }
}

/// One connection's seat, given back when the last clone is dropped.
#[derive(Clone)]
pub(super) struct Seat(Arc<Held>);

struct Held {
    idle: Arc<Idle>,
    /// The place among the idle; none while a request is under way.
    number: Mutex<Option<u64>>,
    closed: CancellationToken,
    is_under_way: watch::Sender<bool>,
    _permit: OwnedSemaphorePermit,
}

impl Seat {
    /// Returns once a request is under way.
    pub(super) async fn under_way(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.0.is_under_way.subscribe().wait_for(|&is_so| is_so).await;
    }

    /// Returns once the seat is another's.
    pub(super) async fn closed(&self) {
        self.0.closed.cancelled().await;
    }

    /// The head of a request has come, or all of it: it becomes [`UnderWay`] when its body has been read. None where the seat
    /// is another's already.
    pub(super) fn request<B: Body>(&self, body: B) -> Option<(RequestBody<B>, OfRequest)> {
        let renewed = self.0.renew();
        let of_request = OfRequest(Arc::default());
        let body = RequestBody { body, seat: self.clone(), of_request: of_request.clone() };
        body.note_end();
        renewed.then_some((body, of_request))
    }

    /// All of a request has been read; it is under way until this is dropped. None where the seat is another's already.
    fn begin(&self) -> Option<UnderWay> {
        let number = self.0.number().take();
        // HTTP/1 has one request at a time; should there be two, the seat is busy until the first is over.
        number.is_none_or(|number| self.0.idle.remove(number)).then(|| {
            self.0.is_under_way.send_replace(true);
            UnderWay(Arc::clone(&self.0))
        })
    }
}

impl Held {
    /// Makes an idle one the youngest; false where the seat is another's already.
    fn renew(&self) -> bool {
        let mut number = self.number();
        let Some(old) = *number else { return true };
        let is_ours = self.idle.remove(old);
        *number = is_ours.then(|| self.idle.add(self.closed.clone(), GRACE));
        is_ours
    }

    fn number(&self) -> MutexGuard<'_, Option<u64>> {
        self.number.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(number) = self.number().take() {
            self.idle.remove(number);
        }
    }
}

/// A request under way.
pub(super) struct UnderWay(Arc<Held>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.is_under_way.send_replace(false);
        let number = self.0.idle.add(self.0.closed.clone(), Duration::ZERO);
        *self.0.number() = Some(number);
    }
}

/// What a request and its answer share: that the request is under way, once all of it has been read.
#[derive(Clone)]
pub(super) struct OfRequest(Arc<OnceLock<UnderWay>>);

/// A request's body, whose end begins the request.
pub(super) struct RequestBody<B> {
    body: B,
    seat: Seat,
    of_request: OfRequest,
}

impl<B: Body> RequestBody<B> {
    fn note_end(&self) {
        if self.body.is_end_stream() {
            self.begin();
        }
    }

    fn begin(&self) {
        // Where the seat is another's already, the connection is about to end.
        if self.of_request.0.get().is_none()
            && let Some(under_way) = self.seat.begin()
        {
            let _ = self.of_request.0.set(under_way);
        }
    }
}

impl<B: Body + Unpin> Body for RequestBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match frame {
            None => self.begin(),
            Some(_) => self.note_end(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body, with the request it belongs to under way until it is sent.
pub(super) struct BusyBody<B> {
    body: B,
    _of_request: OfRequest,
}

impl<B> BusyBody<B> {
    pub(super) fn new(body: B, of_request: OfRequest) -> Self {
        Self { body, _of_request: of_request }
    }
}

impl<B: Body + Unpin> Body for BusyBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test(start_paused = true)]
    async fn one_that_has_just_come_is_left_alone_for_a_moment() {
        let seats = Seats::new(2);
        let (first, second) = (seats.take().await, seats.take().await);
        let began = Instant::now();
        let mut knocking = std::pin::pin!(seats.take());
        tokio::select! {
            _ = knocking.as_mut() => panic!("nobody has left"),
            () = first.closed() => {}
        }
        assert_eq!(began.elapsed(), GRACE);
        assert!(second.closed().now_or_never().is_none());
        drop(first);
        let third = knocking.await;
        // Whoever has been served need not be left alone.
        drop(third.begin().unwrap());
        drop(second.begin().unwrap());
        assert!(seats.take().now_or_never().is_none());
        assert!(third.closed().now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_that_has_been_idle_longest_leaves_for_a_new_one() {
        let seats = Seats::new(3);
        let (first, second, third) = (seats.take().await, seats.take().await, seats.take().await);
        tokio::time::advance(GRACE).await;
        // The first has been served and is the youngest of the idle.
        drop(first.begin().unwrap());
        assert!(seats.take().now_or_never().is_none(), "nobody has left so far");
        assert!(second.closed().now_or_never().is_some());
        assert!(first.closed().now_or_never().is_none() && third.closed().now_or_never().is_none());
        assert!(second.begin().is_none(), "a request that comes too late is not begun");
        drop(second);
        assert!(seats.take().now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_leaves_who_is_being_answered() {
        let seats = Seats::new(1);
        let seat = seats.take().await;
        let under_way = seat.begin().unwrap();
        let mut newcomer = std::pin::pin!(seats.take());
        assert!(newcomer.as_mut().now_or_never().is_none());
        assert!(seat.closed().now_or_never().is_none());
        drop(under_way);
        assert!(newcomer.as_mut().now_or_never().is_none());
        assert!(seat.closed().now_or_never().is_some(), "the first to become idle leaves");
        drop(seat);
        assert!(newcomer.now_or_never().is_some());
    }
}
