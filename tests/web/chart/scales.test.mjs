import assert from 'node:assert/strict'
import test from 'node:test'
import { epochOf, fromAnswer } from '../../../web/chart/loss_series.js'
import { epochMarks, logTicks, lossRange, scale, spread, ticks } from '../../../web/chart/scales.js'
import { answered, waves } from './answers.mjs'

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

test('of crowded checkpoints the best and the later ones are shown', () => {
  const marks = Array.from({ length: 390 }, (_, index) => ({ step: (index + 1) * 80, best: index === 123 }))
  const shown = spread(marks, (step) => step / 100, 12)
  assert.ok(shown.length <= 27)
  assert.ok(shown.some((mark) => mark.best) && shown.at(-1).step === 31200)
  assert.ok(shown.every((mark, index) => !index || (mark.step - shown[index - 1].step) / 100 >= 12))
})
