//! Views of a run: lines and a bar for people, or JSON for programs.

use std::sync::Arc;
use std::time::Duration;

use ksync::monitor::Monitor;
use ksync::sync::watch::News;
use ksync::sync::{Job, Report};

use crate::json::Json;
use crate::live::LiveScreen;
use crate::request::Show;
use crate::screen::Screen;

/// Shows the progress of a run.
pub(crate) trait View: Monitor + Send + Sync {
    /// Interval of calling [`View::tick`].
    fn period(&self) -> Duration;

    /// Draws the progress.
    fn tick(&self) {}

    /// Called when no more events come.
    fn finish(&self) {}

    /// Shows the result of a sync.
    fn report(&self, report: &Report);

    /// Shows an event of a watch, or of a command after a sync.
    fn news(&self, news: News<'_>);
}

/// The view of one job.
pub(crate) fn of(job: &Job, show: Show, watches: bool) -> Arc<dyn View> {
    if show.json {
        Arc::new(Json::begin(job, watches))
    } else if watches {
        Arc::new(LiveScreen::new(job, show))
    } else {
        Arc::new(Screen::new(job, show))
    }
}
