// What a run has learned, from the evaluations of its held-out files, and what that says.
// Pure, tested by tests/web/chart/meters.test.mjs.
//
// An evaluation is {step, loss, learned, is_best} and more, a number null where it is not finite. What was learned is null
// as well in runs from before it was measured: of those nothing is shown or said. Texts are {key, values} for t() of
// ../shared/messages.js.

const PATIENCE = 3 // evaluations in a row that count as more than noise
// and this share of all evaluations: a curve that rises evenly needs half of it to learn more by TOLERANCE of evaluate.py
const PATIENT_SHARE = 0.1

const text = (key, values = {}) => ({ key: `chart.${key}`, values })

const finite = (value) => (Number.isFinite(value) ? value : null)

/** [{step, learned, isBest}], what was learned null where it is unknown. */
export function metersOf(heldOut = []) {
  return heldOut.map(({ step, learned, is_best: isBest }) => ({ step, learned: finite(learned), isBest: Boolean(isBest) }))
}

/** Whether what was learned was ever measured. */
export const hasMeters = (heldOut = []) => heldOut.some(({ learned }) => finite(learned) !== null)

/** A share in two digits. */
export const share = (value) => (value === null ? '-' : String(Number(value.toPrecision(2))))

/**
 * {meters, says}: what the last evaluation measured and what all of them say; null before the first after the start, and
 * where what was learned is not measured.
 */
export function verdict(heldOut, isRunning) {
  const after = heldOut.filter(({ step }) => step > 0)
  if (!after.length || !hasMeters(heldOut)) return null
  const measured = metersOf(after)
  return { meters: text('meters', { learned: share(measured.at(-1).learned) }), says: conclusion(measured, isRunning) }
}

function conclusion(measured, isRunning) {
  const last = measured.at(-1)
  if (last.learned === null) return text('meters_broken', { step: last.step })
  const best = measured.filter(({ isBest }) => isBest).at(-1)
  if (best?.learned === null) return text('meters_not_better', { step: best.step }) // from before it was measured
  if (!best || best.learned <= 0) return text('meters_nothing')
  const ending = isRunning ? '' : '_at_end'
  if (best === last) return text(`meters_improving${ending}`)
  const since = measured.filter(({ step }) => step > best.step).length
  const isLong = since >= Math.max(PATIENCE, PATIENT_SHARE * measured.length)
  return text(isLong ? `meters_no_more${ending}` : 'meters_not_better', { step: best.step })
}
