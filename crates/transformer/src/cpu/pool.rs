//! A pool of threads that runs one closure on all of them at once and is warm again at once.
//!
//! A decoder's step is some two hundred short parallel sections, each a few microseconds behind the last: too near one
//! another to put threads to sleep and wake them. Between sections the workers therefore spin for `SPIN` turns, a few
//! tens of microseconds, and only then park, so that an idle worker costs nothing and other threads get the cores.
#![allow(unsafe_code)] // Lends a borrowed closure to threads that outlive the borrow, and slices to several threads.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::hint::spin_loop;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// Turns of spinning before a thread parks: some 30 microseconds on x86-64, where a pause takes 40 to 140 cycles. Longer
/// than the serial stretches within a step, short enough not to matter to the threads that serve HTTP on the same cores.
const SPIN: u32 = 1_000;

/// The most threads of a pool: a guard against absurd settings.
pub const MAX_THREADS: usize = 1_024;

type Job = *const (dyn Fn(usize, usize) + Sync);

/// What the threads share.
struct Shared {
    /// Grows by one with every job; the workers wait for it to change.
    epoch: AtomicU32,
    /// The job of this epoch. Written by the caller before it changes `epoch`, and only when no worker is running.
    job: UnsafeCell<Option<Job>>,
    /// Workers that have not finished this epoch's job.
    n_running: AtomicUsize,
    /// Workers that have parked, or are about to.
    parked: Vec<AtomicBool>,
    /// The caller, when it has parked or is about to.
    caller: Mutex<Option<Thread>>,
    caller_parked: AtomicBool,
    /// The first panic of a worker in this epoch.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

// SAFETY: `job` is written only while no worker reads it, see its comment; all else is `Sync` by itself. The pointer in it
// is to a `Sync` closure.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer may be followed from any thread.
unsafe impl Send for Shared {}

/// `n_threads - 1` threads and the one that calls [`Pool::run`].
///
/// Jobs do not nest, and one thread at a time may run them: a `Pool` can be sent to another thread but not shared.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    _not_sync: PhantomData<Cell<()>>,
}

impl Pool {
    /// Starts `n_threads - 1` threads.
    ///
    /// # Errors
    /// When the system gives no more threads, or `n_threads` is 0 or beyond [`MAX_THREADS`].
    pub fn new(n_threads: usize) -> io::Result<Pool> {
        if n_threads == 0 || n_threads > MAX_THREADS {
            let message = format!("a pool has 1 to {MAX_THREADS} threads, not {n_threads}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let shared = Arc::new(Shared {
            epoch: AtomicU32::new(0),
            job: UnsafeCell::new(None),
            n_running: AtomicUsize::new(0),
            parked: (1..n_threads).map(|_| AtomicBool::new(false)).collect(),
            caller: Mutex::new(None),
            caller_parked: AtomicBool::new(false),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        // Workers join on drop, so a failure half-way leaves none behind.
        let mut pool = Pool { shared, workers: Vec::with_capacity(n_threads - 1), _not_sync: PhantomData };
        for worker_idx in 0..n_threads - 1 {
            let shared = Arc::clone(&pool.shared);
            let body = move || work(&shared, worker_idx, n_threads);
            pool.workers.push(thread::Builder::new().name(format!("cpu-{}", worker_idx + 1)).spawn(body)?);
        }
        Ok(pool)
    }

    /// Threads that run a job, the calling one included.
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `job(thread_idx, n_threads)` once for each `thread_idx` in `0..n_threads`, on as many threads, and returns when
    /// all have returned. Index 0 is the calling thread. Allocates nothing.
    ///
    /// # Panics
    /// When a call panics: with the caller's panic if it had one, else with the first of the workers', after all calls
    /// have ended. The pool remains usable.
    pub fn run<F: Fn(usize, usize) + Sync>(&self, job: F) {
        let n_threads = self.n_threads();
        if n_threads == 1 {
            return job(0, 1);
        }
        let shared = &*self.shared;
        let job_ref: &(dyn Fn(usize, usize) + Sync) = &job;
        // SAFETY: only the lifetime changes. Workers follow the pointer only while `n_running` is above zero, and this
        // function returns, or unwinds, only after it has reached zero: `job` outlives every use.
        let erased: Job = unsafe { std::mem::transmute::<&(dyn Fn(usize, usize) + Sync), Job>(job_ref) };
        // SAFETY: `n_running` is zero: no worker reads `job` now, and `Pool` is not `Sync`, so no other caller writes it.
        unsafe { *shared.job.get() = Some(erased) };
        shared.n_running.store(n_threads - 1, SeqCst);
        shared.epoch.fetch_add(1, SeqCst);
        for (parked, worker) in shared.parked.iter().zip(&self.workers) {
            if parked.load(SeqCst) && parked.swap(false, SeqCst) {
                worker.thread().unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(0, n_threads)));
        shared.wait_for_workers();
        let theirs = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    /// Divides the rows of `items`, each `row_len` long, among the threads and calls `job(first_row, rows)` once for each
    /// part. With fewer than `min_rows` rows for each thread, fewer threads get any; with too few for two, no thread is
    /// woken.
    ///
    /// # Panics
    /// When `items` is not a whole number of rows; and as [`Pool::run`].
    pub fn run_rows<T, F>(&self, items: &mut [T], row_len: usize, min_rows: usize, job: F)
    where
        T: Send,
        F: Fn(usize, &mut [T]) + Sync,
    {
        assert!(row_len > 0 && items.len().is_multiple_of(row_len), "{} items in rows of {row_len}", items.len());
        let n_rows = items.len() / row_len;
        let n_parts = self.n_threads().min(n_rows / min_rows.max(1)).max(1);
        if n_parts == 1 {
            return job(0, items);
        }
        let items = SharedSlice::new(items);
        self.run(|thread_idx, _| {
            if thread_idx < n_parts {
                let rows = share(n_rows, 1, thread_idx, n_parts);
                let first = rows.start;
                // SAFETY: the shares of different threads do not overlap.
                job(first, unsafe { items.range_mut(rows.start * row_len..rows.end * row_len) });
            }
        });
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("n_threads", &self.n_threads()).finish()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.epoch.fetch_add(1, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches its jobs' panics, so it ends by returning.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn wait_for_workers(&self) {
        for _ in 0..SPIN {
            if self.n_running.load(SeqCst) == 0 {
                return;
            }
            spin_loop();
        }
        *self.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
        self.caller_parked.store(true, SeqCst);
        while self.n_running.load(SeqCst) != 0 {
            thread::park();
        }
        self.caller_parked.store(false, SeqCst);
    }

    fn finish_one(&self) {
        let is_last = self.n_running.fetch_sub(1, SeqCst) == 1;
        if is_last
            && self.caller_parked.load(SeqCst)
            && let Some(caller) = &*self.caller.lock().unwrap_or_else(PoisonError::into_inner)
        {
            caller.unpark();
        }
    }

    /// Waits for an epoch other than `seen` and returns it.
    fn wait_for_epoch(&self, seen: u32, parked: &AtomicBool) -> u32 {
        for _ in 0..SPIN {
            let epoch = self.epoch.load(SeqCst);
            if epoch != seen {
                return epoch;
            }
            spin_loop();
        }
        loop {
            // Sequentially consistent on both sides: either the caller sees that this thread has parked and wakes it, or
            // this thread sees the new epoch and does not park.
            parked.store(true, SeqCst);
            let epoch = self.epoch.load(SeqCst);
            if epoch != seen {
                parked.store(false, SeqCst);
                return epoch;
            }
            thread::park();
        }
    }
}

/// A worker's life.
fn work(shared: &Shared, worker_idx: usize, n_threads: usize) {
    let mut seen = 0;
    loop {
        seen = shared.wait_for_epoch(seen, &shared.parked[worker_idx]);
        if shared.stop.load(SeqCst) {
            return;
        }
        // SAFETY: the caller wrote the job before it changed the epoch, and neither overwrites it nor lets the closure go
        // before `finish_one` below.
        let outcome = unsafe {
            let job = (*shared.job.get()).expect("a job comes with its epoch");
            catch_unwind(AssertUnwindSafe(|| (*job)(worker_idx + 1, n_threads)))
        };
        if let Err(panic) = outcome {
            shared.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
        shared.finish_one();
    }
}

/// The part of `0..n_items` that falls to one of `n_threads` threads: contiguous, in thread order, of about equal size, and
/// cut at multiples of `unit` only.
pub fn share(n_items: usize, unit: usize, thread_idx: usize, n_threads: usize) -> Range<usize> {
    let n_units = n_items.div_ceil(unit);
    let cut = |idx: usize| (n_units * idx / n_threads * unit).min(n_items);
    cut(thread_idx)..cut(thread_idx + 1)
}

/// A slice of which several threads may each write a part.
pub struct SharedSlice<'a, T> {
    first: *mut T,
    len: usize,
    _items: PhantomData<&'a mut [T]>,
}

// SAFETY: hands out `&mut [T]` to other threads, which `T: Send` allows; that parts do not overlap is up to the callers of
// the unsafe method.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    /// All of `items`.
    pub fn new(items: &'a mut [T]) -> SharedSlice<'a, T> {
        SharedSlice { first: items.as_mut_ptr(), len: items.len(), _items: PhantomData }
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// While the returned part is in use, nobody else is given a part that overlaps it.
    ///
    /// # Panics
    /// When the range ends past the slice.
    #[allow(clippy::mut_from_ref)] // That is its purpose; the safety rule stands above.
    pub unsafe fn range_mut(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: inside the slice, and the caller vouches that parts do not overlap.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(range.start), range.len()) }
    }

    /// The address of element `idx`, for views that no slice can describe.
    ///
    /// # Panics
    /// When `idx` lies past the slice.
    pub fn ptr(&self, idx: usize) -> *mut T {
        assert!(idx <= self.len, "{idx} of {}", self.len);
        // SAFETY: inside the slice, or one past its end.
        unsafe { self.first.add(idx) }
    }
}

#[cfg(test)]
mod tests;
