//! Bytes over time as a picture: held as lines, live as the area under them, groups as bands below.

use std::fs;
use std::path::Path;

use anyhow::Context;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use tilework::timeline::Sample;

use crate::engine::TICKS_PER_RUN;
use crate::units;

/// Size of a panel, pixels.
const WIDTH: u32 = 900;
const HEIGHT: u32 = 450;

/// The height of a group's band, and of the words under them.
const BAND: i32 = 22;
const CAPTION: i32 = 26;

const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const QUIET: RGBColor = RGBColor(0x66, 0x66, 0x66);
const GRID: RGBColor = RGBColor(0xe4, 0xe4, 0xe4);
const LIVE: RGBColor = RGBColor(0xcf, 0xd9, 0xe2);
/// Dark enough to stand out from what is live, and light enough to write on.
const RUNNING: RGBColor = RGBColor(0x7f, 0xb8, 0xd8);
const LIVE_EDGE: RGBColor = RGBColor(0x9f, 0xb2, 0xc3);

/// Each manager's colour, the same in every picture, told apart with any colour vision (after Okabe and
/// Ito).
const COLOURS: [(&str, RGBColor); 5] = [
    ("tiled", RGBColor(0x00, 0x72, 0xb2)),
    ("placed", RGBColor(0xe6, 0x9f, 0x00)),
    ("bucketized", RGBColor(0xd5, 0x5e, 0x00)),
    ("committed", RGBColor(0xcc, 0x79, 0xa7)),
    ("ort arena, no pattern", RGBColor(0x56, 0xb4, 0xe9)),
];

/// The colour of what is none of our managers.
const OTHER: RGBColor = RGBColor(0x00, 0x9e, 0x73);

/// What is left of a chart for its labels, and right of it, pixels.
const Y_LABELS: i32 = 84;
const MARGIN: i32 = 28;

const FONT: &str = "Helvetica, Arial, sans-serif";

/// One picture of a file.
pub struct Panel {
    title: String,
    x_label: String,
    /// Places marked on the horizontal axis.
    marks: Vec<(u64, String)>,
    lines: Vec<Line>,
    bands: Vec<Band>,
}

/// Where a group was.
pub struct Band {
    /// What it is called.
    pub label: String,
    /// From when on it was where.
    pub shades: Vec<(u64, Shade)>,
}

/// What is told of a group at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shade {
    /// On the device and in use.
    Running,
    /// On the device.
    Resident,
    /// On the host.
    Evicted,
}

impl Shade {
    fn colour(self) -> RGBColor {
        match self {
            Shade::Running => RUNNING,
            Shade::Resident => LIVE,
            Shade::Evicted => WHITE,
        }
    }
}

/// One manager's series.
pub struct Line {
    /// What the legend calls it.
    pub label: String,
    /// Its samples, in order.
    pub samples: Vec<Sample>,
}

impl Panel {
    /// The picture of a trace replayed in passes of `events` events.
    pub fn of_trace(title: &str, events: u64, lines: Vec<Line>) -> Panel {
        let end = lines.iter().filter_map(|l| l.samples.last()).map(|s| s.at).max().unwrap_or(0);
        let marks = (1..)
            .map(|pass| (pass * events, format!("pass {}", pass + 1)))
            .take_while(|mark| mark.0 < end)
            .collect();
        Panel {
            title: title.to_owned(),
            x_label: "allocations and frees".to_owned(),
            marks,
            lines,
            bands: Vec::new(),
        }
    }

    /// The picture of a model run `runs` times. The samples' axis is the
    /// progress of its requests.
    pub fn of_runs(title: &str, runs: u64, lines: Vec<Line>) -> Panel {
        let marks = (1..runs).map(|run| (run * TICKS_PER_RUN, format!("run {}", run + 1))).collect();
        let x_label = format!("allocations and frees, {} steps a run", units::count(TICKS_PER_RUN));
        Panel { title: title.to_owned(), x_label, marks, lines, bands: Vec::new() }
    }

    /// The picture of `models` models run in order, `passes` times, with a band for each one's group.
    pub fn of_pipeline(title: &str, passes: u64, models: u64, line: Line, bands: Vec<Band>) -> Panel {
        let pass = |pass: u64| (pass * models * TICKS_PER_RUN, format!("pass {}", pass + 1));
        Panel { bands, marks: (1..passes).map(pass).collect(), ..Panel::of_runs(title, 0, vec![line]) }
    }

    /// What the bands take of the picture's height.
    fn bands_height(&self) -> i32 {
        if self.bands.is_empty() { 0 } else { self.bands.len() as i32 * BAND + CAPTION }
    }

    fn end(&self) -> u64 {
        self.lines.iter().filter_map(|l| l.samples.last()).map(|s| s.at + 1).max().unwrap_or(1)
    }

    fn top(&self) -> u64 {
        let tops = self.lines.iter().flat_map(|l| &l.samples).map(|s| s.held.max(s.live));
        tops.max().unwrap_or(0).max(1)
    }
}

/// Writes panels one above the other as an SVG file.
pub fn write(path: &Path, panels: &[Panel]) -> anyhow::Result<()> {
    let mut svg = String::new();
    {
        let height = panels.iter().map(|panel| HEIGHT + panel.bands_height() as u32).sum();
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut rest = root.clone();
        for panel in panels {
            let (area, below) = rest.split_vertically(HEIGHT);
            draw(&area, panel)?;
            let (area, below) = below.split_vertically(panel.bands_height());
            draw_bands(&area, panel)?;
            rest = below;
        }
        root.present()?;
    }
    fs::write(path, svg).with_context(|| format!("cannot write {}", path.display()))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw(area: &Area<'_>, panel: &Panel) -> anyhow::Result<()> {
    let (unit_name, unit) = units::unit_of(panel.top());
    let scaled = |bytes: u64| bytes as f64 / unit as f64;
    let (end, top) = (panel.end(), scaled(panel.top()) * 1.08);

    area.draw(&Text::new(panel.title.clone(), (20, 14), font(17).style(FontStyle::Bold).color(&INK)))?;
    let below = legend(area, panel)?;

    let (_, body) = area.split_vertically(below);
    let mut chart = ChartBuilder::on(&body)
        .margin_right(MARGIN)
        .margin_bottom(6)
        .x_label_area_size(46)
        .y_label_area_size(Y_LABELS)
        .build_cartesian_2d(0.0..end as f64, 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(QUIET)
        .label_style(font(13).color(&QUIET))
        .x_labels(8)
        .y_labels(6)
        .x_label_formatter(&|x| units::count(*x as u64))
        .y_label_formatter(&|y| format!("{y} {unit_name}"))
        .x_desc(&panel.x_label)
        .axis_desc_style(font(13).color(&QUIET))
        .draw()?;

    // What is live is the same under every manager, so one area stands for all.
    if let Some(first) = panel.lines.first() {
        let live = steps(&first.samples, end, |sample| scaled(sample.live));
        // The edge shows peaks that are too narrow for the area to show.
        chart.draw_series(AreaSeries::new(live, 0.0, LIVE).border_style(LIVE_EDGE))?;
    }
    for (at, label) in &panel.marks {
        let at = *at as f64;
        let rule = PathElement::new([(at, 0.0), (at, top)], QUIET.mix(0.5));
        chart.draw_series([rule])?;
        let style = font(12).color(&QUIET).pos(Pos::new(HPos::Left, VPos::Top));
        chart.draw_series([EmptyElement::at((at, top)) + Text::new(label.clone(), (5, 2), style)])?;
    }
    // The first line is the one that matters most: it is drawn last, above the others, and thicker.
    for (at, line) in panel.lines.iter().enumerate().rev() {
        let held = steps(&line.samples, end, |sample| scaled(sample.held));
        let width = if at == 0 { 3 } else { 2 };
        chart.draw_series(LineSeries::new(held, colour(line).stroke_width(width)))?;
    }
    Ok(())
}

/// Where each group was, on the axis of the chart above.
fn draw_bands(area: &Area<'_>, panel: &Panel) -> anyhow::Result<()> {
    if panel.bands.is_empty() {
        return Ok(());
    }
    let (end, count) = (panel.end(), panel.bands.len() as f64);
    let (body, caption) = area.split_vertically(panel.bands_height() - CAPTION);
    let mut chart = ChartBuilder::on(&body)
        .margin_right(MARGIN)
        .set_label_area_size(LabelAreaPosition::Left, Y_LABELS)
        .build_cartesian_2d(0.0..end as f64, count..0.0)?;
    for (row, band) in (0..).map(f64::from).zip(&panel.bands) {
        for (at, &(from, shade)) in band.shades.iter().enumerate() {
            let to = band.shades.get(at + 1).map_or(end, |next| next.0);
            let corners = [(from as f64, row + 0.08), (to as f64, row + 0.92)];
            chart.draw_series([Rectangle::new(corners, shade.colour().filled())])?;
            chart.draw_series([Rectangle::new(corners, LIVE_EDGE.stroke_width(1))])?;
        }
        let style = font(12).color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
        let text = Text::new(band.label.clone(), (6, 0), style);
        chart.draw_series([EmptyElement::at((0.0, row + 0.5)) + text])?;
    }
    let mut x = Y_LABELS;
    for (shade, text) in [
        (Shade::Running, "weights on the device, running"),
        (Shade::Resident, "on the device"),
        (Shade::Evicted, "on the host"),
    ] {
        for style in [shade.colour().filled(), LIVE_EDGE.stroke_width(1)] {
            caption.draw(&Rectangle::new([(x, 7), (x + 22, 19)], style))?;
        }
        x = key(&caption, x, 13, text)?;
    }
    Ok(())
}

/// Keys under the title, in as many rows as they need, each with the peak it stands for. Returns where the
/// chart can begin.
fn legend(area: &Area<'_>, panel: &Panel) -> anyhow::Result<i32> {
    let (mut x, mut y) = (LEFT, 50);
    if let Some(first) = panel.lines.first() {
        let peak = first.samples.iter().map(|s| s.live).max().unwrap_or(0);
        area.draw(&Rectangle::new([(x, y - 6), (x + 22, y + 6)], LIVE.filled()))?;
        x = key(area, x, y, &format!("live, peak {}", units::bytes(peak)))?;
    }
    for line in &panel.lines {
        let peak = line.samples.iter().map(|s| s.held).max().unwrap_or(0);
        let text = format!("{} {}", line.label, units::bytes(peak));
        if x > LEFT && x + key_width(&text) > WIDTH as i32 {
            (x, y) = (LEFT, y + 22);
        }
        area.draw(&PathElement::new([(x, y), (x + 22, y)], colour(line).stroke_width(3)))?;
        x = key(area, x, y, &text)?;
    }
    Ok(y + 16)
}

/// Where rows of keys begin.
const LEFT: i32 = 20;

/// Writes a key's text beside its mark at `x`; returns where the next key begins.
fn key(area: &Area<'_>, x: i32, y: i32, text: &str) -> anyhow::Result<i32> {
    let style = font(13).color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
    area.draw(&Text::new(text.to_owned(), (x + 28, y), style))?;
    Ok(x + key_width(text))
}

/// The width of a key with its mark and the gap after it. That of the text is a guess: whoever shows the
/// picture chooses the font.
fn key_width(text: &str) -> i32 {
    28 + text.len() as i32 * 7 + 14
}

/// The outline of a series that keeps each value until the next: two corners for each change.
fn steps(samples: &[Sample], end: u64, value: impl Fn(&Sample) -> f64) -> Vec<(f64, f64)> {
    let mut corners: Vec<(f64, f64)> = Vec::new();
    for sample in samples {
        let (x, y) = (sample.at as f64, value(sample));
        match corners.last() {
            Some(&(_, before)) if before == y => continue,
            Some(&(_, before)) => corners.push((x, before)),
            None => {}
        }
        corners.push((x, y));
    }
    corners.extend(corners.last().map(|&(_, y)| (end as f64, y)));
    corners
}

fn colour(line: &Line) -> RGBColor {
    COLOURS.iter().find(|(name, _)| line.label.starts_with(name)).map_or(OTHER, |(_, colour)| *colour)
}

fn font(size: u32) -> FontDesc<'static> {
    FontDesc::new(FontFamily::Name(FONT), f64::from(size), FontStyle::Normal)
}
