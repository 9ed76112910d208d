// What the list of runs shows: pure, tested by tests/web/runs/run_list.test.mjs.

import { share } from '../chart/meters.js'

export const MOST_OVERLAID = 6

/** The runs whose name, folder or model holds every word, whatever the case. */
export function filtered(runs, words) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean)
  return runs.filter((run) => {
    const text = `${run.name} ${run.run} ${run.base} ${run.state}`.toLowerCase()
    return wanted.every((word) => text.includes(word))
  })
}

const finite = (value) => (Number.isFinite(value) ? value : Infinity)

const ORDERS = {
  date: (a, b) => b.updated - a.updated,
  name: (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }) || b.updated - a.updated,
  loss: (a, b) => {
    const [first, second] = [finite(a.best?.loss), finite(b.best?.loss)]
    return first === second ? b.updated - a.updated : first - second
  }
}

export const ORDER_NAMES = Object.keys(ORDERS)

/** A sorted copy: by date, the newest first; by name; or by the best held-out loss, where runs without one come last. */
export function sorted(runs, order) {
  return [...runs].sort(ORDERS[order] ?? ORDERS.date)
}

/** The chosen runs after one more was clicked; beyond six the first one goes. */
export function toggled(chosen, run) {
  return chosen.includes(run) ? chosen.filter((each) => each !== run) : [...chosen, run].slice(-MOST_OVERLAID)
}

/** The chosen runs that are still there. */
export function stillThere(chosen, runs) {
  return chosen.filter((run) => runs.some((each) => each.run === run))
}

/** The checkpoint to offer: the best, else the newest; null where there is none. */
export function offered(run) {
  return run.best?.step ?? run.checkpoints.at(-1)?.step ?? null
}

/** Whether another attempt of the same run is newer, so that queueing its graph would go on with that one. */
export const isFormer = (run, runs) => runs.some((each) => each.key === run.key && each.attempt > run.attempt)

/** [key, values] for t(): what a second line says of a run. */
export function described(run, format) {
  const parts = [['runs.steps', { step: run.step, total: run.total_steps }]]
  if (run.best?.loss != null) {
    const key = run.base_loss != null ? 'runs.best_of' : 'runs.best'
    parts.push([key, { loss: format(run.best.loss), step: run.best.step, base: format(run.base_loss) }])
    const { learned } = run.best
    if (learned != null) parts.push(['chart.meters', { learned: share(learned) }])
  }
  if (run.rank) parts.push(['runs.rank', { rank: run.rank }])
  parts.push(['runs.size', { size: mebibytes(run.bytes) }])
  return parts
}

/** 12.3 or 140, in MiB. */
export function mebibytes(bytes) {
  const size = bytes / 2 ** 20
  return size < 100 ? size.toFixed(1) : String(Math.round(size))
}
