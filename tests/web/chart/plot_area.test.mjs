import assert from 'node:assert/strict'
import test from 'node:test'
import { fromAnswer } from '../../../web/chart/loss_series.js'
import { endOf, MARGIN, plotArea, shownCurve } from '../../../web/chart/plot_area.js'

const curve = (step, loss) => ({ ...fromAnswer(), step, low: loss, high: loss, smooth: loss, rate: step.map(() => 1e-4) })
const RUN = { run: 'a', curve: curve([1, 50, 100], [0.4, 0.3, 0.2]), heldOut: [{ step: 60, loss: 0.9, base_loss: 1 }] }
const BOTH = { isLog: false, hasRate: true }
const SIZE = [400, 200]

test('all steps of the longest run lie between the margins', () => {
  const longer = { run: 'b', curve: curve([1, 200], [0.4, 0.1]) }
  const { first, last, x, right, bottom } = plotArea([RUN, longer], null, { isLog: false, hasRate: false }, SIZE)
  assert.deepEqual([first, last, right, bottom], [0, 200, 400 - MARGIN.right, 200 - MARGIN.bottom])
  assert.deepEqual([x(0), x(200), endOf([])], [MARGIN.left, right, 1])
})

test('losses are between top and bottom, what was measured on held-out files with them, and only what is in view', () => {
  const whole = plotArea([RUN], null, BOTH, SIZE)
  assert.ok(whole.range[1] > 1 && whole.y(whole.range[0]) === whole.bottom && whole.y(whole.range[1]) === MARGIN.top)
  assert.ok(plotArea([RUN], [70, 100], BOTH, SIZE).range[1] < 0.5)
})

test('learning rates have a scale and a margin of their own, where they are shown', () => {
  const { yRate, rateRange, right } = plotArea([RUN], null, BOTH, SIZE)
  assert.equal(right, 400 - MARGIN.rate)
  assert.ok(rateRange[1] > 1e-4 && yRate(0) === 200 - MARGIN.bottom)
  assert.equal(plotArea([RUN], null, { ...BOTH, hasRate: false }, SIZE).yRate, null)
})

test('where it was measured, a strip below the losses has what was learned, of the whole run', () => {
  const measured = [[0, 0], [40, 0.2], [80, 0.1], [100, null]]
    .map(([step, learned]) => ({ step, loss: 0.5, base_loss: 1, learned }))
  const { strip, bottom, foot, right, y, range } = plotArea([{ ...RUN, heldOut: measured }], [0, 50], { isLog: false, hasRate: false }, SIZE)
  assert.ok(bottom < strip.top && strip.top < foot && foot === 200 - MARGIN.bottom && right === 400 - MARGIN.right)
  assert.ok(y(range[0]) === bottom)
  assert.deepEqual(strip.lines[0].map(({ learned }) => learned), [0, 0.2, 0.1, null])
  assert.equal(strip.y(0), foot)
  assert.ok(strip.top < strip.y(0.2) && strip.y(0.2) < strip.top + 5, 'the largest is near the top')
  const older = measured.map((each) => ({ ...each, learned: null }))
  for (const run of [RUN, { ...RUN, heldOut: older }]) {
    const before = plotArea([run], null, { isLog: false, hasRate: false }, SIZE)
    assert.deepEqual([before.strip, before.bottom, before.right], [null, before.foot, 400 - MARGIN.right])
  }
})

test('the detail is shown while it covers the view', () => {
  const detailed = { ...RUN, detail: { first: 10, last: 60, curve: curve([10, 60], [0.4, 0.3]) } }
  assert.equal(shownCurve(detailed, [20, 50]), detailed.detail.curve)
  for (const view of [null, [5, 50], [20, 61]]) assert.equal(shownCurve(detailed, view), detailed.curve)
})
