//! Worker threads of a link. They live as long as the link, and serve one exchange after the other.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

/// Number of threads: enough that one can wait for the disk while others hash.
const THREADS: usize = 4;

type Job = Box<dyn FnOnce() + Send>;

/// Threads that perform jobs.
pub(super) struct Pool {
    jobs: Sender<Job>,
    under_way: Arc<UnderWay>,
}

/// Number of jobs that have not ended.
#[derive(Default)]
struct UnderWay {
    count: Mutex<usize>,
    ended: Condvar,
}

/// Counts a job as ended when it is dropped, even by a panic.
struct Ending(Arc<UnderWay>);

impl Drop for Ending {
    fn drop(&mut self) {
        *self.0.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.ended.notify_all();
    }
}

impl Pool {
    /// Starts the threads. They end with the pool.
    pub(super) fn new() -> Self {
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..THREADS {
            let queue = Arc::clone(&queue);
            thread::spawn(move || perform(&queue));
        }
        Self { jobs, under_way: Arc::default() }
    }

    /// Performs a job on the next free thread. A job that panics costs its thread.
    pub(super) fn start(&self, job: impl FnOnce() + Send + 'static) {
        *self.under_way.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let ending = Ending(Arc::clone(&self.under_way));
        // Without a thread left, the job is dropped, and its ending with it.
        let _ = self.jobs.send(Box::new(move || {
            let _ending = ending;
            job();
        }));
    }

    /// Waits until no job is under way.
    pub(super) fn wait(&self) {
        let count = self.under_way.count.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.under_way.ended.wait_while(count, |count| *count > 0));
    }
}

fn perform(queue: &Mutex<Receiver<Job>>) {
    loop {
        // A statement of its own, so that the lock is not held during the job.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}
