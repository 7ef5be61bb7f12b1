//! Waits that the API asks for, told to whoever waits.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Shortest wait that is told: nobody notices a shorter one.
const TOLD_MIN: Duration = Duration::from_secs(2);

/// Listener of waits: the reason with the next step, and the time until then. The default one tells
/// nobody.
#[derive(Clone, Default)]
pub struct Waits(Option<Listener>);

type Listener = Arc<dyn Fn(String, Duration) + Send + Sync>;

impl Waits {
    /// Makes a listener.
    pub fn new(listener: impl Fn(String, Duration) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(listener)))
    }

    /// Tells of a retry after `wait`, because of `error` after `took`.
    pub(super) fn retry(&self, error: &dyn Error, took: Duration, wait: Duration) {
        if took.max(wait) >= TOLD_MIN {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            let after = wait.as_secs_f64().ceil();
            let again = if wait < TOLD_MIN { String::new() } else { format!(" in {after} s") };
            self.tell(format!("{error}{cause}; trying again{again}"), wait);
        }
    }

    /// Tells of a wait.
    pub(super) fn tell(&self, what: String, wait: Duration) {
        if let Some(listener) = &self.0 {
            listener(what, wait);
        }
    }
}

impl fmt::Debug for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Waits").field(&self.0.is_some()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn only_a_wait_that_somebody_notices_is_told() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let telling = Arc::clone(&told);
        let waits = Waits::new(move |what, _| telling.lock().unwrap().push(what));
        let ms = Duration::from_millis;
        for (took, wait) in [(ms(5), ms(500)), (ms(5), ms(1900)), (ms(5), ms(60_000)), (ms(60_000), ms(500))]
        {
            waits.retry(&std::io::Error::other("no"), took, wait);
        }
        assert_eq!(*told.lock().unwrap(), ["no; trying again in 60 s", "no; trying again"]);
        Waits::default().tell("nobody hears it".to_owned(), ms(1));
    }
}
