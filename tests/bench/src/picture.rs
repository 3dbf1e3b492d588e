//! Draws a packet's cost by flows and by routes, from the figures of a run.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;

use crate::packets::{
    Figure, KNOWN_AMONG_1M, KNOWN_AMONG_16M, KNOWN_AMONG_64K, MANY_ROUTES, READ_AMONG_1M, READ_AMONG_16M,
    READ_AMONG_64K, TEN_ROUTES,
};
use crate::results;

#[derive(clap::Args)]
pub struct Args {
    /// The file with the figures of a run
    #[arg(long, default_value = "bench/results.json")]
    results: PathBuf,
    /// The file to draw into
    #[arg(long, default_value = "docs/growth.svg")]
    picture: PathBuf,
}

/// A line of the chart: its name, and its points, each with the case whose cost it shows.
type Line = (&'static str, &'static [(u32, &'static str)]);

const BY_FLOWS: [Line; 2] = [
    (
        "a known flow's packet",
        &[
            (1, "known flow, dsr-ipip, TCP v4"),
            (1 << 10, "known flow among 1k, dsr-ipip, TCP v4"),
            (1 << 13, "known flow among 8k, dsr-ipip, TCP v4"),
            (1 << 16, KNOWN_AMONG_64K.name),
            (1 << 20, KNOWN_AMONG_1M.name),
            (1 << 24, KNOWN_AMONG_16M.name),
        ],
    ),
    (
        "baseline: ipip and one line of memory",
        &[(1 << 16, READ_AMONG_64K.name), (1 << 20, READ_AMONG_1M.name), (1 << 24, READ_AMONG_16M.name)],
    ),
];

const BY_ROUTES: [Line; 2] = [
    (
        "a packet that routes are looked up for",
        &[
            (1, "stateless pick, 1 route"),
            (10, TEN_ROUTES.name),
            (1000, "stateless pick, 1,000 routes"),
            (10_000, "stateless pick, 10,000 routes"),
            (100_000, MANY_ROUTES.name),
        ],
    ),
    (
        "a known flow's packet",
        &[(1, "known flow, dsr-ipip, TCP v4"), (100_000, "known flow, 100,000 routes")],
    ),
];

pub fn run(args: &Args) -> Result<()> {
    let figures = results::section::<Figure>(&args.results, "packets")?
        .with_context(|| format!("{} has no figures of packets", args.results.display()))?;
    // Written as a whole, so that a failure leaves the former file as it is.
    let mut picture = String::new();
    let area = SVGBackend::with_string(&mut picture, (900, 360)).into_drawing_area();
    area.fill(&WHITE)?;
    let (left, right) = area.split_horizontally(450);
    draw(&left, "flows on record", &BY_FLOWS, &figures)?;
    draw(&right, "routes", &BY_ROUTES, &figures)?;
    area.present()?;
    drop((area, left, right));
    fs::write(&args.picture, picture).with_context(|| format!("writing {}", args.picture.display()))
}

fn draw(
    area: &DrawingArea<SVGBackend, plotters::coord::Shift>,
    what: &str,
    lines: &[Line],
    figures: &[Figure],
) -> Result<()> {
    let lines = lines.iter().map(|line| points(line, figures)).collect::<Result<Vec<_>>>()?;
    let all = || lines.iter().flat_map(|(_, points)| points);
    let most = all().map(|(x, _)| *x).max().unwrap_or(1);
    let highest = all().map(|(_, y)| *y).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_right(28)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d((1..most).log_scale(), 0.0..highest * 1.3)?;
    chart
        .configure_mesh()
        .x_desc(what)
        .y_desc("ns a packet")
        .y_label_formatter(&|y| format!("{y:.0}"))
        .light_line_style(WHITE)
        .draw()?;
    for ((name, points), color) in lines.into_iter().zip([&BLUE, &RED]) {
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)).point_size(3))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK)
        .background_style(WHITE)
        .draw()?;
    Ok(())
}

fn points((name, cases): &Line, figures: &[Figure]) -> Result<(&'static str, Vec<(u32, f64)>)> {
    let height = |case: &str| {
        let figure = figures.iter().find(|figure| figure.case == case);
        figure.map(|figure| figure.nanoseconds).ok_or_else(|| anyhow!("the results lack the case {case:?}"))
    };
    let points = cases.iter().map(|(x, case)| Ok((*x, height(case)?))).collect::<Result<_>>()?;
    Ok((name, points))
}
