//! A team of threads that look out for work instead of sleeping.
//!
//! A decoding step of a small model is some 200 parallel regions of 10 to 50 microseconds. Waking a sleeping thread takes as
//! long as such a region; a thread that watches a counter joins within a microsecond. After [`WATCH`] without work it
//! sleeps, so that an idle process takes no time from others.

use rayon::prelude::*;
use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long a thread watches before it sleeps: longer than what a generation step does on one thread (sampling, bookkeeping).
const WATCH: Duration = Duration::from_millis(1);

thread_local! {
    /// Whether this thread runs a task of the team: what it starts then runs on it alone.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `task(0)` to `task(len - 1)`, in any order, on all threads.
///
/// Inside a rayon pool, or while another thread uses the team, rayon runs them; inside a task of the team they run one after
/// the other on its thread.
pub(crate) fn run(len: usize, task: impl Fn(usize) + Sync + Send) {
    if len <= 1 || INSIDE.get() {
        return (0..len).for_each(task);
    }
    if rayon::current_thread_index().is_none() {
        let team = TEAM.get_or_init(Team::start);
        if team.threads == 1 {
            return (0..len).for_each(task);
        }
        if team.busy.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            let outcome = team.run(len, &task);
            team.busy.store(false, Ordering::Release);
            return outcome.unwrap_or_else(|panic| resume_unwind(panic));
        }
    }
    (0..len).into_par_iter().with_max_len(1).for_each(task);
}

static TEAM: OnceLock<&'static Team> = OnceLock::new();

/// The current job and who waits for it. On a cache line of its own, since all threads watch it.
#[repr(align(128))]
#[derive(Default)]
struct Team {
    /// Number of the job in the upper, tasks not yet taken in the lower 32 bits. A task is taken by lowering it, which
    /// fails when the job has changed since.
    ticket: AtomicU64,
    /// The job: its closure, how to call it, its number of tasks. Written while no task is left to take.
    closure: AtomicPtr<()>,
    call: AtomicUsize,
    len: AtomicUsize,
    /// Tasks that have ended.
    done: AtomicUsize,
    busy: AtomicBool,
    sleeping: AtomicUsize,
    bed: Mutex<()>,
    bell: Condvar,
    /// What a task panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Threads, the caller's included.
    threads: usize,
}

type Call = unsafe fn(*const (), usize);

/// Calls the closure behind `closure`.
///
/// # Safety
/// `closure` points to a live `F`.
unsafe fn call<F: Fn(usize) + Sync>(closure: *const (), i: usize) {
    // SAFETY: by the caller's promise.
    unsafe { (*closure.cast::<F>())(i) }
}

impl Team {
    fn start() -> &'static Team {
        let threads = rayon::current_num_threads();
        let team: &'static Team = Box::leak(Box::new(Team { threads, ..Team::default() }));
        for i in 1..threads {
            // Without the thread the others do its share.
            let _ = std::thread::Builder::new().name(format!("team-{i}")).spawn(|| team.watch());
        }
        team
    }

    /// Runs a job to its end; what a task panicked with comes back.
    fn run<F: Fn(usize) + Sync>(&self, len: usize, task: &F) -> Result<(), Box<dyn Any + Send>> {
        debug_assert!(u32::try_from(len).is_ok());
        self.closure.store(std::ptr::from_ref(task).cast_mut().cast(), Ordering::Relaxed);
        self.call.store(call::<F> as Call as usize, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
        let job = (self.ticket.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        self.ticket.store(job << 32 | len as u64, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            drop(self.bed.lock().unwrap_or_else(PoisonError::into_inner));
            self.bell.notify_all();
        }
        INSIDE.set(true);
        while self.take_one() {}
        INSIDE.set(false);
        let mut rounds = 0u32;
        while self.done.load(Ordering::Acquire) < len {
            rounds += 1;
            if rounds.is_multiple_of(1024) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        panic.map_or(Ok(()), Err)
    }

    /// Takes and runs a task, if one is left.
    fn take_one(&self) -> bool {
        let ticket = self.ticket.load(Ordering::Acquire);
        let left = ticket as u32 as usize;
        if left == 0 {
            return false;
        }
        let (closure, function) = (self.closure.load(Ordering::Relaxed), self.call.load(Ordering::Relaxed));
        let len = self.len.load(Ordering::Relaxed);
        if self.ticket.compare_exchange(ticket, ticket - 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return true;
        }
        // SAFETY: the exchange shows that the job read above is still the current one and that this task of it was not
        // taken; its caller waits until all tasks are done, so the closure lives. `function` was stored from a `Call`.
        let run = || unsafe { std::mem::transmute::<usize, Call>(function)(closure, len - left) };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
        self.done.fetch_add(1, Ordering::Release);
        true
    }

    /// A thread's life: tasks, watching, sleep.
    fn watch(&self) {
        INSIDE.set(true);
        loop {
            let start = Instant::now();
            while !self.take_one() {
                (0..64).for_each(|_| std::hint::spin_loop());
                if start.elapsed() > WATCH {
                    self.sleep();
                    break;
                }
            }
        }
    }

    /// Sleeps until there is a task.
    fn sleep(&self) {
        let mut bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        while self.ticket.load(Ordering::SeqCst) as u32 == 0 {
            bed = self.bell.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_task_runs_once_job_after_job_asleep_or_awake() {
        for round in 0..2000usize {
            let counts: Vec<AtomicU32> = (0..round % 37).map(|_| AtomicU32::new(0)).collect();
            run(counts.len(), |i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "round {round}");
            if round % 500 == 0 {
                std::thread::sleep(2 * WATCH);
            }
        }
    }

    #[test]
    fn tasks_inside_tasks_and_callers_side_by_side_all_run() {
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        run(5, |_| {
                            run(3, |_| {
                                total.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 4 * 50 * 5 * 3);
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_team_goes_on() {
        let failed = catch_unwind(|| run(8, |i| assert!(i != 5, "task 5")));
        assert!(failed.is_err());
        let total = AtomicUsize::new(0);
        run(8, |i| {
            total.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(total.into_inner(), 28);
    }
}
