//! The list of VMs.

use std::time::Duration;

use ratatui::layout::{Constraint, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{self, HighlightSpacing, StatefulWidget, Table, TableState, Widget as _};
use unicode_width::UnicodeWidthStr as _;

use super::columns::{Field, columns};
use super::paint::{Paint, REVERSED, STRONG};
use crate::cli::severity::{self, Tone};
use crate::cli::table::{duration, safe};
use crate::cli::top::model::{Model, Overlay, Regions, Row, Stale};

const KEYS: &str = "F1 Help  F3/ Filter  F6 Sort  R Reverse  Enter Details  Esc All  q Quit";

pub(super) fn draw(paint: &mut Paint, model: &Model, stale: Option<&Stale>) {
    let regions = model.regions();
    title(paint, model, regions.title);
    match stale {
        // Too low a terminal for both.
        Some(stale) if regions.banners.is_empty() => {
            paint.line(regions.summary, &stale.to_string(), REVERSED);
        }
        _ => summary(paint, model, regions.summary),
    }
    for (area, (text, tone)) in regions.banners.rows().zip(model.banners()) {
        let style = if tone == Tone::Bad { REVERSED } else { paint.style(tone) };
        paint.line(area, &text, style);
    }
    rows(paint, model, &regions);
    if let Some(row) = model.selected() {
        let text = format!("{}: {}", row.vm.name, severity::reason(&row.vm));
        paint.line(regions.reason, &text, paint.style(Tone::of(&row.vm.state)));
    }
    match &model.overlay {
        Overlay::Filtering(_) => {
            let typed = paint.fitted(&format!("/{}", model.filter), regions.keys.width);
            let hint = "  Enter keeps the filter, Esc takes it back";
            let spans = [Span::styled(typed, STRONG), Span::styled(" ", REVERSED), hint.into()];
            Line::from_iter(spans).render(regions.keys, paint.buffer);
        }
        _ => paint.line(regions.keys, KEYS, REVERSED),
    }
}

fn title(paint: &mut Paint, model: &Model, area: Rect) {
    let clock = humantime::format_rfc3339_seconds(model.wall).to_string();
    let clock = clock.get(11..19).map(|time| format!("{time} UTC")).unwrap_or_default();
    let style = paint.style(Tone::Plain);
    if let Some(host) = &model.host {
        let name = host.hostname.as_deref().unwrap_or("this host");
        let uptime = duration(Duration::from_secs(host.uptime_seconds));
        let text = format!(
            "flatline {} on {name}, Linux {}, up {uptime}, mode {}",
            host.version,
            host.kernel,
            host.mode.as_str()
        );
        paint.line(Rect { width: area.width.saturating_sub(13), ..area }, &text, style);
    }
    paint.right(area, &clock, style);
}

fn summary(paint: &mut Paint, model: &Model, area: Rect) {
    if model.host.is_none() {
        return;
    }
    let (by, _) = model.column.describe();
    let mut note = format!("by {by}");
    if model.reversed {
        note.push_str(", reversed");
    }
    if !model.filter.is_empty() {
        let (shown, all) = (model.shown.len(), model.rows.len());
        note = format!("{shown} of {all}: /{}  {note}", model.filter);
    }
    let note = paint.fitted(&note, area.width / 2);
    let width = area.width.saturating_sub(u16::try_from(note.width() + 1).unwrap_or(u16::MAX));
    let text = severity::summary(model.rows.iter().map(|row| &row.vm));
    paint.line(Rect { width, ..area }, &text, STRONG);
    paint.right(area, &note, paint.style(Tone::Plain));
}

fn rows(paint: &mut Paint, model: &Model, regions: &Regions) {
    let shown = model.offset..model.shown.len();
    let shown = shown.take(regions.rows.height.into()).filter_map(|index| model.row(index));
    let shown: Vec<&Row> = shown.collect();
    if shown.is_empty() {
        let text = match (&model.host, model.rows.is_empty()) {
            (None, _) => "asking the daemon",
            (Some(_), true) => "no VMs",
            (Some(_), false) => "no VM matches; Esc shows all",
        };
        paint.line(regions.rows, &format!(" {text}"), paint.style(Tone::Plain));
    }
    let names = shown.iter().map(|row| safe(&row.vm.name).width()).max().unwrap_or(0);
    let columns = columns(regions.rows.width, u16::try_from(names).unwrap_or(u16::MAX));
    let header =
        columns.iter().map(|column| Line::from(column.title).alignment(column.alignment()));
    let plain = paint.style(Tone::Plain);
    let cells = |row: &&Row| {
        let tone = paint.style(Tone::of(&row.vm.state));
        let cells = columns.iter().map(|column| {
            let text = paint.fitted(&column.text(row, paint.look.unicode), column.width);
            let is_toned = matches!(column.field, Field::State | Field::Line);
            let style = if is_toned { tone } else { plain };
            Line::styled(text, style).alignment(column.alignment())
        });
        widgets::Row::new(cells.collect::<Vec<_>>())
    };
    let widths = columns.iter().map(|column| Constraint::Length(column.width));
    let mut table = Table::new(shown.iter().map(cells), widths)
        .row_highlight_style(REVERSED)
        .highlight_symbol(">")
        .highlight_spacing(HighlightSpacing::Always);
    if !regions.header.is_empty() {
        table = table.header(widgets::Row::new(header).style(REVERSED));
    }
    let cursor = (!shown.is_empty()).then(|| model.cursor.saturating_sub(model.offset));
    let mut state = TableState::new().with_selected(cursor);
    StatefulWidget::render(table, regions.header.union(regions.rows), paint.buffer, &mut state);
}
