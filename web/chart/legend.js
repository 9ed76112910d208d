// The legend of a chart: the values at the step that is pointed at, or else at the last one.

import { el } from '../shared/elements.js'
import { t } from '../shared/messages.js'
import { compact } from '../shared/number_text.js'
import { colourOf } from './curves.js'
import { epochOf, lastStep, nearest } from './loss_series.js'
import { hasMeters, metersOf, share } from './meters.js'
import { shownCurve } from './plot_area.js'

/** [{name, value, kind, colour}] at a step, null for the last; `kind` is the style of the line before the name. */
export function legendItems(series, view, step, hasRate) {
  const [one] = series
  if (!one) return []
  const at = step ?? lastStep(one.curve)
  const epoch = epochOf(at, one.stepsPerEpoch)
  const items = [{ name: t('chart.step'), value: String(at) }]
  if (epoch) items.push({ name: t('chart.epoch'), value: String(epoch) })
  if (series.length > 1) return [...items, ...series.map((each, index) => smoothOf(each, index, view, at))]
  const { low, high, smooth, rate } = valuesOf(one, view, at)
  const raw = low === high ? compact(low) : `${compact(low)}..${compact(high)}`
  items.push({ name: t('chart.loss'), kind: 'raw', value: raw })
  items.push({ name: t('chart.smooth'), kind: 'smooth', value: compact(smooth) })
  const held = (one.heldOut ?? []).filter((each) => each.step <= at).at(-1)
  if (held) {
    items.push({ name: t('chart.held_out'), kind: 'held', value: compact(held.loss) })
    items.push({ name: t('chart.base'), kind: 'base', value: compact(held.base_loss) })
    if (hasMeters(one.heldOut)) {
      items.push({ name: t('chart.learned'), kind: 'learned', value: share(metersOf([held])[0].learned) })
    }
  }
  if (hasRate || step !== null) {
    items.push({ name: t('chart.rate'), kind: hasRate && 'rate', value: compact(rate) })
  }
  return items
}

function smoothOf(each, index, view, at) {
  // beyond the end of a shorter run its last value is shown
  const value = at <= lastStep(each.curve) ? valuesOf(each, view, at).smooth : each.curve.smooth.at(-1)
  return { name: each.name, kind: 'smooth', colour: colourOf(each, index), value: compact(value) }
}

function valuesOf(each, view, at) {
  const curve = shownCurve(each, view)
  const index = nearest(curve.step, at)
  return { low: curve.low[index], high: curve.high[index], smooth: curve.smooth[index], rate: curve.rate[index] }
}

export const legendElement = ({ name, value, kind, colour }) => el('span', { class: 'wt-item' },
  kind && el('i', { class: `wt-key wt-key-${kind}`, style: colour ? `color: ${colour}` : '' }), name, ' ',
  value && el('b', {}, value))
