import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import test from 'node:test'
import { hasMeters, metersOf, share, verdict } from '../../../web/chart/meters.js'

const [TEXTS, CHINESE] = ['en', 'zh'].map((language) =>
  JSON.parse(readFileSync(new URL(`../../../locales/${language}/main.json`, import.meta.url))).wantune.chart)

const TOLERANCE = 0.05 // of trainer/training/evaluate.py

/** Evaluations every 100 steps, from what is learned; the best is chosen as Judge in evaluate.py does. */
function measured(learned) {
  let best = -Infinity
  return learned.map((gain, index) => {
    const isBest = index > 0 && gain - TOLERANCE * Math.max(0, gain) > best
    if (isBest) best = gain
    return { step: 100 * index, loss: 0.3, base_loss: 0.2, learned: Number.isFinite(gain) ? gain : null, is_best: isBest }
  })
}

function said(heldOut, isRunning = true) {
  const found = verdict(heldOut, isRunning)
  if (!found) return ''
  const [one, other] = [TEXTS, CHINESE].map((texts) => [found.meters, found.says].map(({ key, values }) =>
    texts[key.replace('chart.', '')].replace(/\{(\w+)\}/g, (_, name) => {
      assert.ok(name in values, `${key} lacks ${name}`)
      return values[name]
    })).join(': '))
  assert.notEqual(one, other)
  return one
}

const COUNT = 30
const indices = Array.from({ length: COUNT }, (_, index) => index)
const rising = indices.map((index) => 0.3 * (1 - Math.exp(-index / 4)))

test('what was learned is as it was measured; what is not known stays so', () => {
  assert.deepEqual(metersOf([{ step: 1, learned: 0.25, is_best: true }, { step: 2, learned: null }, { step: 3, loss: 0.3 }]),
    [{ step: 1, learned: 0.25, isBest: true }, { step: 2, learned: null, isBest: false }, { step: 3, learned: null, isBest: false }])
  assert.deepEqual([metersOf(), hasMeters(), hasMeters([{ learned: null }]), hasMeters([{ learned: 0 }])], [[], false, false, true])
  assert.deepEqual([0.2149, 0.0421, -0.03, 0, null].map(share), ['0.21', '0.042', '-0.03', '0', '-'])
})

test('nothing is said before the first evaluation after the start, and the first says what it can', () => {
  assert.equal(said([]), '')
  assert.equal(said(measured([0])), '')
  assert.equal(said(measured([0, 0.1])), 'learned 0.1: still improving.')
  assert.equal(said(measured([0, -0.1])), 'learned -0.1: no better than without the LoRA so far.')
  assert.match(said(measured([0, 0.1, NaN])), /^learned -: the held-out loss of step 200 is not finite/)
})

test('of evaluations from before it was measured nothing is said, and a best one of then stays the one to beat', () => {
  const older = ({ learned: _learned, ...each }) => each
  const whole = measured([0, 0.1, 0.15, 0.2])
  assert.equal(said(whole.map(older)), '')
  const going = [...whole.slice(0, 3).map(older), { ...whole[3], is_best: false }]
  assert.equal(said(going), 'learned 0.2: not better since step 200.')
  assert.equal(said([...going.slice(0, 3), whole[3]]), 'learned 0.2: still improving.')
})

test('of a curve that flattens or falls the beginning of the plateau is named', () => {
  assert.equal(said(measured(rising.slice(0, 6))), 'learned 0.21: still improving.')
  assert.match(said(measured(rising.slice(0, 6)), false), /still improving at the end; more steps may help\.$/)
  const whole = measured(rising)
  const { step } = whole.filter((each) => each.is_best).at(-1)
  assert.ok(step >= 800 && step < 1500, `the best of the run is step ${step}`)
  assert.equal(said(whole), `learned 0.3: no more is learned since step ${step}: stop, or use step ${step}.`)
  assert.match(said(whole, false), new RegExp(`: no more was learned after step ${step}: use step ${step}\\.$`))
  assert.match(said(whole.slice(0, step / 100 + 3)), /not better since/, 'two evaluations may be noise')
  const falling = measured(indices.map((index) => 0.02 * (index < 8 ? index : 14 - index)))
  assert.match(said(falling), /^learned -0.3: no more is learned since step 700: stop, or use step 700\.$/)
})

test('noise neither stops a curve that rises nor hides that one has flattened', () => {
  let seed = 1
  const random = () => ((seed = (seed * 48271) % 2147483647) / 2147483647)
  const noise = () => random() + random() + random() - 1.5 // standard deviation 1/2
  for (let trial = 0; trial < 200; trial++) {
    const steady = measured(indices.map((index) => 0.01 * index + 0.006 * noise()))
    for (let end = 6; end <= COUNT; end++) assert.doesNotMatch(said(steady.slice(0, end)), /stop/)
    const flat = measured(rising.map((gain) => gain + 0.006 * noise()))
    const told = indices.filter((end) => /no more is learned/.test(said(flat.slice(0, end))))
    assert.ok(told[0] > 6 && told[0] <= 26, `told at evaluation ${told[0]}`)
  }
  const long = measured(Array.from({ length: 300 }, (_, index) => 0.001 * index + 0.0006 * noise()))
  for (let end = 30; end <= 300; end++) assert.doesNotMatch(said(long.slice(0, end)), /stop/)
})
