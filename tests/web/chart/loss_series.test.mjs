import assert from 'node:assert/strict'
import test from 'node:test'
import { append, fromAnswer, lastStep, nearest, thinned } from '../../../web/chart/loss_series.js'
import { answered, waves } from './answers.mjs'

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
