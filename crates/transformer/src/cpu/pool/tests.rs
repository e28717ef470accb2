//! What jobs may rely on.

use super::*;
use proptest::prelude::*;
use std::time::Duration;

#[test]
fn a_job_runs_once_on_each_thread() {
    for n_threads in [1, 2, 5] {
        let pool = Pool::new(n_threads).expect("threads");
        let counts: Vec<AtomicUsize> = (0..n_threads).map(|_| AtomicUsize::new(0)).collect();
        for round in 1..=200 {
            pool.run(|thread_idx, n| {
                assert_eq!(n, n_threads);
                counts[thread_idx].fetch_add(1, SeqCst);
            });
            assert!(counts.iter().all(|count| count.load(SeqCst) == round));
        }
    }
}

#[test]
fn the_calling_thread_is_number_0() {
    let (pool, caller) = (Pool::new(2).expect("threads"), thread::current().id());
    pool.run(|thread_idx, _| assert_eq!(thread::current().id() == caller, thread_idx == 0));
}

#[test]
fn parked_workers_wake_and_a_parked_caller_too() {
    let pool = Pool::new(3).expect("threads");
    let n_done = AtomicUsize::new(0);
    for round in 1..=5 {
        // Longer than any spinning: first the workers park, then the caller, waiting for the slowest.
        thread::sleep(Duration::from_millis(5));
        pool.run(|thread_idx, _| {
            thread::sleep(Duration::from_millis(5 * thread_idx as u64));
            n_done.fetch_add(1, SeqCst);
        });
        assert_eq!(n_done.load(SeqCst), 3 * round);
    }
}

#[test]
fn a_panic_of_any_thread_reaches_the_caller_and_leaves_the_pool_usable() {
    let pool = Pool::new(3).expect("threads");
    for culprit in 0..3 {
        let n_others = AtomicUsize::new(0);
        let job = || {
            pool.run(|thread_idx, _| {
                assert!(thread_idx != culprit, "thread {culprit} fell over");
                n_others.fetch_add(1, SeqCst);
            });
        };
        let panic = catch_unwind(AssertUnwindSafe(job)).expect_err("a panic");
        assert_eq!(panic.downcast_ref::<String>(), Some(&format!("thread {culprit} fell over")));
        assert_eq!(n_others.load(SeqCst), 2, "the others ended before the caller went on");
    }
    pool.run(|_, _| {});
}

#[test]
fn refuses_absurd_numbers_of_threads() {
    assert!(Pool::new(0).is_err());
    assert!(Pool::new(MAX_THREADS + 1).is_err());
}

proptest! {
    #[test]
    fn shares_are_adjacent_and_cover_everything(n_items in 0usize..1000, unit in 1usize..40, n_threads in 1usize..20) {
        let mut end = 0;
        for thread_idx in 0..n_threads {
            let part = share(n_items, unit, thread_idx, n_threads);
            prop_assert_eq!(part.start, end);
            prop_assert!(part.start.is_multiple_of(unit) || part.start == n_items);
            prop_assert!(part.len() <= (n_items.div_ceil(unit).div_ceil(n_threads)) * unit);
            end = part.end;
        }
        prop_assert_eq!(end, n_items);
    }
}

#[test]
fn rows_are_visited_once_by_their_number() {
    for (n_threads, n_rows, min_rows) in [(1, 7, 1), (3, 7, 1), (3, 7, 4), (4, 2, 1), (2, 0, 1)] {
        let pool = Pool::new(n_threads).expect("threads");
        let mut items = vec![0; n_rows * 3];
        pool.run_rows(&mut items, 3, min_rows, |first, rows| {
            for (i, row) in rows.chunks_exact_mut(3).enumerate() {
                row.iter_mut().for_each(|item| *item += first + i + 1);
            }
        });
        let expected: Vec<usize> = (0..n_rows).flat_map(|row| [row + 1; 3]).collect();
        assert_eq!(items, expected, "{n_threads} threads, {n_rows} rows");
    }
}
