//! The picture of a pipeline: what is live and held, and where each model's weights are.

use std::path::Path;

use tilework::manager::Usage;
use tilework::timeline::Timeline;

use super::{Model, Report};
use crate::engine::TICKS_PER_RUN;
use crate::plot::{self, Band, Line, Panel, Shade};
use crate::pool::Moment;
use crate::run::Args;
use crate::units;

/// What is drawn: every run takes as much of the axis, cut by the requests and frees in it.
pub struct Picture {
    timeline: Timeline,
    runs: u64,
    /// Of each group, where it is from when on.
    bands: Vec<Vec<(u64, Shade)>>,
}

impl Picture {
    pub fn new(groups: usize) -> Picture {
        Picture { timeline: Timeline::default(), runs: 0, bands: vec![Vec::new(); groups] }
    }

    /// Adds what was seen while the group at this place ran.
    pub fn add(&mut self, running: usize, moments: &[Moment]) {
        let count = moments.len() as u64;
        for (number, Moment { usage, here }) in (0..).zip(moments) {
            let at = self.runs * TICKS_PER_RUN + number * TICKS_PER_RUN / count;
            self.timeline.push(at, &Usage { live: usage.live, held: usage.held, ..Usage::default() });
            for (group, (band, &here)) in self.bands.iter_mut().zip(here).enumerate() {
                let shade = match here {
                    false => Shade::Evicted,
                    true if group == running => Shade::Running,
                    true => Shade::Resident,
                };
                if band.last().is_none_or(|(_, last)| *last != shade) {
                    band.push((at, shade));
                }
            }
        }
        self.runs += 1;
    }

    pub fn write(self, path: &Path, args: &Args, report: &Report) -> anyhow::Result<()> {
        let line = Line { label: report.manager.to_string(), samples: self.timeline.samples().to_vec() };
        let band = |(model, shades): (&Model, _)| Band { label: model.name.clone(), shades };
        let bands = report.models.iter().zip(self.bands).map(band).collect();
        let title = format!(
            "{} models on {}, {}",
            report.models.len(),
            args.device,
            match report.budget_bytes {
                Some(bytes) => format!("{} to hold", units::bytes(bytes)),
                None => "no budget".to_owned(),
            }
        );
        let panel = Panel::of_pipeline(&title, u64::from(args.runs), report.models.len() as u64, line, bands);
        plot::write(path, &[panel])
    }
}
