// What a run has learned and how far the model has drifted, from the evaluations of its held-out files, and what that says.
// Pure, tested by tests/web/chart/meters.test.mjs.
//
// An evaluation is {step, drift, top_loss, base_top_loss, is_best} and more, a number null where it is not finite. All of
// them but the step are null as well in runs from before they were measured: of those nothing is shown or said. Texts are {key, values} for t() of ../shared/messages.js.

export const TOLERANCE = 0.05 // as in trainer/training/evaluate.py
const PATIENCE = 3 // evaluations in a row that count as more than noise

const text = (key, values = {}) => ({ key: `chart.${key}`, values })

const finite = (value) => (Number.isFinite(value) ? value : null)

/**
 * [{step, learned, drift, isBest}]: learned is the share of the base model's loss at the highest noise level that is gone,
 * null where it is unknown.
 */
export function metersOf(heldOut = []) {
  return heldOut.map(({ step, top_loss: loss, base_top_loss: base, drift, is_best: isBest }) => ({
    step,
    learned: finite(loss) !== null && finite(base) ? 1 - loss / base : null,
    drift: finite(drift),
    isBest: Boolean(isBest),
  }))
}

const isMeasured = ({ base_top_loss: base }) => Boolean(finite(base))

/** Whether drift was ever measured beside what was learned. */
export const hasMeters = (heldOut = []) => heldOut.some((each) => isMeasured(each) && finite(each.drift) !== null)

/** A share in two digits. */
export const share = (value) => (value === null ? '-' : String(Number(value.toPrecision(2))))

/**
 * {meters, says}: the numbers of the last evaluation and what all of them say; null before the first after the start, and
 * where what was learned is not measured.
 */
export function verdict(heldOut, isRunning) {
  const after = heldOut.filter(({ step }) => step > 0)
  if (!after.length || !isMeasured(after.at(-1))) return null
  const measured = metersOf(after)
  const last = measured.at(-1)
  const meters = last.drift === null ? text('meters_no_drift', { learned: share(last.learned) })
    : text('meters', { learned: share(last.learned), drift: share(last.drift) })
  return { meters, says: conclusion(measured, last, isRunning) }
}

function conclusion(measured, last, isRunning) {
  if (last.learned === null) return text('meters_broken', { step: last.step })
  const best = measured.filter(({ isBest }) => isBest).at(-1)
  if (best?.learned === null) return text('meters_not_better', { step: best.step }) // from before it was measured
  if (!best || best.learned <= 0) return text('meters_nothing')
  const ending = isRunning ? '' : '_at_end'
  if (best === last) return text(`meters_improving${ending}`)
  const since = measured.filter(({ step }) => step > best.step).slice(-PATIENCE)
  const values = { step: best.step }
  if (since.length < PATIENCE) return text('meters_not_better', values)
  const isWorse = ({ learned }) => learned !== null && learned < best.learned * (1 - TOLERANCE)
  if (since.every(isWorse)) return text(`meters_worse${ending}`, values)
  const isFurther = ({ drift }) => drift !== null && drift > best.drift * (1 + TOLERANCE)
  if (best.drift !== null && since.every(isFurther)) return text(`meters_drifts${ending}`, values)
  return text('meters_not_better', values)
}
