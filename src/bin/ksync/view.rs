//! What a run is shown with: lines and a bar for eyes, or JSON for programs.

use std::sync::Arc;
use std::time::Duration;

use ksync::monitor::Monitor;
use ksync::sync::watch::News;
use ksync::sync::{Job, Report};

use crate::json::Json;
use crate::live::LiveScreen;
use crate::request::Show;
use crate::screen::Screen;

/// Shows how a run goes.
pub(crate) trait View: Monitor + Send + Sync {
    /// How often to call [`View::tick`].
    fn period(&self) -> Duration;

    /// Draws how far it has come.
    fn tick(&self) {}

    /// Nothing more happens.
    fn finish(&self) {}

    /// How a sync ended.
    fn report(&self, report: &Report);

    /// What happens while a destination is kept a copy, or when a command runs after a sync.
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
