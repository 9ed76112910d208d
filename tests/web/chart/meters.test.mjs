import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import test from 'node:test'
import { hasMeters, metersOf, share, TOLERANCE, verdict } from '../../../web/chart/meters.js'

const [TEXTS, CHINESE] = ['en', 'zh'].map((language) =>
  JSON.parse(readFileSync(new URL(`../../../locales/${language}/main.json`, import.meta.url))).wantune.chart)

/** Evaluations every 100 steps, from lists of what is learned and of drift; the best is chosen as Judge in evaluate.py does. */
function measured(learned, drifts = learned.map(() => null)) {
  let [best, most] = [{ gain: -Infinity, drift: null }, -Infinity]
  return learned.map((gain, index) => {
    const drift = drifts[index]
    const largest = Math.max(most, gain)
    const enough = largest - TOLERANCE * Math.max(0, largest)
    const isBest = index > 0 && (drift === null || best.drift === null ? gain > most
      : gain >= enough && (best.gain < enough || drift < best.drift))
    if (isBest) best = { gain, drift }
    if (index > 0 && gain > most) most = gain
    const top = Number.isFinite(gain) ? 0.4 * (1 - gain) : null
    return { step: 100 * index, loss: 0.3, base_loss: 0.2, drift, top_loss: top, base_top_loss: 0.4, is_best: isBest }
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
const straight = indices.map((index) => 0.01 * index)

test('learned is the share of the base loss from pure noise that is gone; what is not known stays so', () => {
  const [one, two, three] = metersOf([{ step: 1, top_loss: 0.3, base_top_loss: 0.4, drift: 0.1, is_best: true },
    { step: 2, top_loss: null, base_top_loss: 0.4, drift: null }, { step: 3, loss: 0.3, base_loss: 0.4, drift: 0 }])
  assert.ok(Math.abs(one.learned - 0.25) < 1e-12 && one.isBest)
  assert.deepEqual(two, { step: 2, learned: null, drift: null, isBest: false })
  assert.deepEqual([three.learned, three.drift], [null, 0])
  const known = { drift: 0, base_top_loss: 0.4 }
  assert.deepEqual([metersOf(), hasMeters(), hasMeters([{ ...known, drift: null }]), hasMeters([{ drift: 0 }]), hasMeters([known])],
    [[], false, false, false, true])
  assert.deepEqual([0.2149, 0.0421, -0.03, 0, null].map(share), ['0.21', '0.042', '-0.03', '0', '-'])
})

test('nothing is said before the first evaluation after the start, and the first says what it can', () => {
  assert.equal(said([]), '')
  assert.equal(said(measured([0], [0])), '')
  assert.equal(said(measured([0, 0.1], [0, 0.01])), 'learned 0.1, drift 0.01: still improving.')
  assert.equal(said(measured([0, -0.1], [0, 0.01])), 'learned -0.1, drift 0.01: no better than without the LoRA so far.')
})

test('of evaluations from before it was measured nothing is said, and a best one of then stays the one to beat', () => {
  const older = ({ top_loss: _top, base_top_loss: _base, ...each }) => each
  const whole = measured([0, 0.1, 0.15, 0.2], [0, 0.01, 0.02, 0.03])
  assert.equal(said(whole.map(older)), '')
  const going = [...whole.slice(0, 3).map(older), { ...whole[3], is_best: false }]
  assert.equal(said(going), 'learned 0.2, drift 0.03: not better since step 200.')
  assert.equal(said([...going.slice(0, 3), whole[3]]), 'learned 0.2, drift 0.03: still improving.')
})

test('a curve that flattens while drift grows: the beginning of the plateau is named', () => {
  assert.equal(said(measured(rising.slice(0, 6), straight)), 'learned 0.21, drift 0.05: still improving.')
  assert.match(said(measured(rising.slice(0, 6), straight), false), /still improving at the end; more steps may help\.$/)
  const whole = measured(rising, straight)
  const { step } = whole.filter((each) => each.is_best).at(-1)
  assert.ok(step >= 1000 && step < 1500, `the best of the run is step ${step}`)
  assert.equal(said(whole),
    `learned 0.3, drift 0.29: drift grows faster than learning since step ${step}; stop, or use step ${step}.`)
  assert.match(said(whole, false), new RegExp(`drift grew faster than learning after step ${step}; use step ${step}\\.$`))
  assert.match(said(whole.slice(0, step / 100 + 3)), /not better since/, 'two evaluations may be noise')
})

test('a curve that falls again is told by what was learned', () => {
  const falling = indices.map((index) => 0.02 * (index < 8 ? index : 14 - index))
  assert.match(said(measured(falling.slice(0, 9), straight)), /drift 0.08: not better since step 700\.$/)
  assert.match(said(measured(falling, straight)), /what is held out gets worse since step 700; stop, or use step 700\.$/)
  assert.match(said(measured(falling), false), /^learned -0.3, drift unknown: what is held out got worse after step 700; use step 700\.$/)
})

test('where drift is unknown, nan, 0 or the same, nothing is said of its growth', () => {
  for (const drifts of [rising.map(() => null), rising.map(() => 0), rising.map(() => 0.05)]) {
    const words = said(measured(rising.map((gain) => Math.min(gain, 0.2)), drifts))
    assert.match(words, /not better since step \d+\.$/)
    assert.equal(/unknown/.test(words), drifts[0] === null)
  }
  const gaps = straight.map((drift, index) => (index === COUNT - 1 ? null : drift))
  assert.match(said(measured(rising, gaps)), /drift unknown: still improving/)
  assert.match(said(measured([0, 0.1, NaN], [0, 0.1, null])), /^learned -, drift unknown: the held-out loss of step 200 is not finite/)
})

test('noise neither stops a curve that rises nor hides that one has flattened', () => {
  let seed = 1
  const random = () => ((seed = (seed * 48271) % 2147483647) / 2147483647)
  const noise = () => random() + random() + random() - 1.5 // standard deviation 1/2
  for (let trial = 0; trial < 200; trial++) {
    const steady = measured(indices.map((index) => 0.01 * index + 0.006 * noise()), straight)
    for (let end = 6; end <= COUNT; end++) assert.doesNotMatch(said(steady.slice(0, end)), /stop/)
    const flat = measured(rising.map((gain) => gain + 0.006 * noise()), straight)
    const told = indices.filter((end) => /drift grows faster/.test(said(flat.slice(0, end))))
    assert.ok(told[0] > 6 && told[0] <= 26, `told at evaluation ${told[0]}`)
  }
})
