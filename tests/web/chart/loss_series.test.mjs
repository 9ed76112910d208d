import assert from 'node:assert/strict'
import test from 'node:test'
import {
  append, band, epochMarks, epochOf, fromAnswer, lastStep, line, logTicks, lossRange, moved, nearest, scale, spread,
  thinned, ticks, within, zoomed,
} from '../../../web/chart/loss_series.js'

const DECAY = 0.98

/** What a server would answer that has seen these losses: one bucket a step. */
function answered(losses) {
  let [value, weight] = [0, 0]
  const smooth = losses.map((loss) => {
    if (loss != null) [value, weight] = [DECAY * value + (1 - DECAY) * loss, DECAY * weight + (1 - DECAY)]
    return value / weight
  })
  const step = losses.map((_, index) => index + 1)
  const curve = { step, low: losses, high: losses, smooth, learning_rate: losses.map(() => 1e-4) }
  return { curve, ema: { value, weight }, ema_decay: DECAY }
}

const waves = (count) => Array.from({ length: count }, (_, index) => 0.1 + 0.05 * Math.sin(index * 1.7))

test('a curve that goes on with messages is the one the server would answer', () => {
  const losses = waves(500)
  losses[321] = null
  let { curve } = append(fromAnswer(answered(losses.slice(0, 300))), [])
  for (let at = 300; at < 500; at += 7) {
    const points = losses.slice(at, at + 7).map((loss, index) => [at + index + 1, loss, 1e-4])
    const next = append(curve, points)
    assert.equal(next.isGap, false)
    curve = next.curve
  }
  const whole = fromAnswer(answered(losses))
  assert.deepEqual(curve.step, whole.step)
  assert.deepEqual(curve.low, whole.low)
  curve.smooth.forEach((value, index) => assert.ok(Math.abs(value - whole.smooth[index]) < 1e-12))
})

test('the first points of a run without a curve begin it, unbiased', () => {
  const { curve, isGap } = append(fromAnswer(undefined), [[1, 0.5, 1e-4], [2, 0.5, 1e-4]])
  assert.equal(isGap, false)
  curve.smooth.forEach((value) => assert.ok(Math.abs(value - 0.5) < 1e-12))
  assert.equal(append(fromAnswer(undefined), [[1, null, 1e-4]]).curve.smooth[0], null)
})

test('points that are there already are left out, and missing ones are told', () => {
  const { curve } = append(fromAnswer(undefined), [[1, 1, 0], [2, 2, 0]])
  assert.equal(append(curve, [[1, 9, 0], [2, 9, 0]]).curve, curve)
  assert.deepEqual(append(curve, [[2, 9, 0], [3, 3, 0]]).curve.low, [1, 2, 3])
  assert.equal(append(curve, [[3, 3, 0]]).isGap, false)
  assert.equal(append(curve, [[4, 4, 0]]).isGap, true)
  assert.equal(append(curve, [[3, 3, 0], [5, 4, 0]]).isGap, true)
})

test('a page that stays open for 31,200 steps keeps few points and no spike is lost', () => {
  let curve = fromAnswer(undefined)
  for (let at = 0; at < 31200; at += 60) {
    const points = Array.from({ length: 60 }, (_, index) => [at + index + 1, at + index === 777 ? 9 : 0.1, 1e-4])
    curve = append(curve, points).curve
    assert.ok(curve.step.length <= 2400)
  }
  assert.equal(lastStep(curve), 31200)
  const drawn = thinned(curve, 0, 31200, 600)
  assert.ok(drawn.step.length <= 600 && drawn.step.length > 400, String(drawn.step.length))
  assert.equal(Math.max(...drawn.high), 9)
  assert.equal(drawn.step.at(-1), 31200)
})

test('thinning keeps to the window, with one entry beyond on either side', () => {
  const curve = fromAnswer(answered(waves(1000)))
  const part = thinned(curve, 400, 440)
  assert.deepEqual([part.step[0], part.step.at(-1)], [399, 441])
  assert.equal(part.low[1], curve.low[399])
  assert.ok(thinned(curve, 1, 1000, 50).step.length <= 50)
  assert.ok(thinned(curve, 337, 912, 50).step.length <= 50)
  assert.deepEqual(thinned(fromAnswer(undefined), 0, 10).step, [])
})

test('a bucket without a finite loss stays a hole', () => {
  const curve = append(fromAnswer(undefined), [[1, null, 0], [2, null, 0], [3, 1, 0], [4, 2, 0]]).curve
  const part = thinned(curve, 0, 4, 5)
  assert.equal(part.low[0], null)
  assert.deepEqual([part.low.at(-1), part.high.at(-1)], [1, 2])
})

test('the nearest step', () => {
  assert.deepEqual([-5, 1, 14, 16, 99].map((step) => nearest([1, 10, 20], step)), [0, 0, 1, 2, 2])
  assert.equal(nearest([], 3), -1)
})

test('the range of losses leaves out a lone spike but nothing smooth or measured', () => {
  const losses = waves(600)
  losses[300] = 50
  const curve = fromAnswer(answered(losses))
  const [low, high] = lossRange([{ ...curve, smooth: curve.smooth.map(() => 0.1) }], [0.3, null])
  assert.ok(high < 1 && high >= 0.3 && low < 0.06, `${low} ${high}`)
  assert.deepEqual(lossRange([]), [0, 1])
  assert.deepEqual(lossRange([], [0, -1], true), [0.01, 1])
  assert.ok(lossRange([], [0.5])[0] < 0.5 && lossRange([], [0.5])[1] > 0.5)
  assert.ok(lossRange([], [0.5, 0], true)[0] > 0)
})

test('scales go there and back', () => {
  for (const isLog of [false, true]) {
    const place = scale([0.01, 1], [200, 0], isLog)
    assert.equal(Math.round(place(0.01)), 200)
    assert.equal(Math.round(place(1)), 0)
    assert.ok(Math.abs(place.back(place(0.3)) - 0.3) < 1e-9)
  }
  assert.equal(scale([0.01, 1], [200, 0], true)(0.1), 100)
  assert.ok(Number.isFinite(scale([0.01, 1], [200, 0], true)(0)))
  assert.ok(Number.isFinite(scale([3, 3], [0, 10])(3)))
})

test('ticks are round, inside, and about as many as are asked for', () => {
  assert.deepEqual(ticks([0, 100], 5), [0, 20, 40, 60, 80, 100])
  assert.deepEqual(ticks([0.0712, 0.0931], 4), [0.08, 0.09])
  assert.deepEqual(ticks([0, 3], 10, true), [0, 1, 2, 3])
  assert.deepEqual(ticks([5, 5], 4), [5])
  assert.deepEqual(logTicks([0.01, 10], 4), [0.01, 0.1, 1, 10])
  assert.deepEqual(logTicks([0.05, 0.2], 4), [0.05, 0.1, 0.2])
  assert.deepEqual(logTicks([0.06, 0.09], 4), ticks([0.06, 0.09], 4))
  for (const range of [[1e-7, 3e-7], [0.03, 0.7], [0, 31200], [17, 18]]) {
    for (const value of ticks(range, 5)) assert.ok(value >= range[0] && value <= range[1])
    assert.ok(ticks(range, 5).length >= 2 && ticks(range, 5).length <= 6, String(ticks(range, 5)))
  }
})

test('epochs end at whole multiples', () => {
  const marks = [{ epoch: 1, step: 80 }, { epoch: 2, step: 160 }, { epoch: 3, step: 240 }]
  assert.deepEqual(epochMarks([0, 240], 80, 5), marks)
  assert.ok(epochMarks([0, 31200], 80, 8).length <= 9)
  assert.deepEqual(epochMarks([10, 40], 80, 8), [])
  assert.deepEqual(epochMarks([0, 40], 0, 8), [])
  assert.deepEqual([1, 80, 81].map((step) => epochOf(step, 80)), [1, 1, 2])
})

test('zooming keeps the step under the pointer where it is, within the run', () => {
  const [first, last] = zoomed([0, 1000], 250, 0.5, 1000)
  assert.deepEqual([first, last], [125, 625])
  assert.equal(zoomed([125, 625], 250, 10, 1000), null)
  assert.deepEqual(zoomed([500, 510], 505, 1e-6, 1000), [503, 507])
  assert.deepEqual(moved([100, 200], 5000, 1000), [900, 1000])
  assert.deepEqual(moved([100, 200], -5000, 1000), [0, 100])
  assert.equal(within([-20, 2000], 1000), null)
})

test('of crowded checkpoints the best and the later ones are shown', () => {
  const marks = Array.from({ length: 390 }, (_, index) => ({ step: (index + 1) * 80, best: index === 123 }))
  const shown = spread(marks, (step) => step / 100, 12)
  assert.ok(shown.length <= 27)
  assert.ok(shown.some((mark) => mark.best) && shown.at(-1).step === 31200)
  assert.ok(shown.every((mark, index) => !index || (mark.step - shown[index - 1].step) / 100 >= 12))
})

test('lines and bands break where there is nothing', () => {
  const same = (value) => value
  assert.equal(line([1, 2, 3, 4], [1, null, 3, 4], same, same), 'M1.0 1.0M3.0 3.0L4.0 4.0')
  assert.equal(band([1, 2, 3], [0, null, 2], [1, null, 3], same, same), 'M1.0 1.0L1.0 0.0ZM3.0 3.0L3.0 2.0Z')
})
