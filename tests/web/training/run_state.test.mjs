import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import test from 'node:test'
import {
  condition, duration, expertOf, figures, fromAnswer, heard, heardByAll, inOrder, outcome, position, presentOf, stripOf,
} from '../../../web/training/run_state.js'

const ANSWER = {
  run: 'nines-1a2b3c4d', name: 'nines', base: 'Wan2.1', started: 1, updated: 2, step: 2, total_steps: 300,
  steps_per_epoch: 30, state: 'running', continues_from: null, best: null, base_loss: null, thumbnail: null,
  checkpoints: [], has_workflow: true, rank: 32, learning_rate: 1e-4, bytes: 5,
  curve: { step: [1, 2], low: [0.3, 0.2], high: [0.3, 0.2], smooth: [0.3, 0.25], learning_rate: [1e-4, 1e-4] },
  ema: { value: 0.01, weight: 0.04 }, ema_decay: 0.98, held_out: [], previews: [], now: null,
}
const ABOUT = { workflow: 'w', node: '7', run: ANSWER.run }
const TEXTS = JSON.parse(readFileSync(new URL('../../../locales/en/main.json', import.meta.url))).wantune.chart
const CHINESE = JSON.parse(readFileSync(new URL('../../../locales/zh/main.json', import.meta.url))).wantune.chart

function said(found) {
  const template = TEXTS[found.key.replace('chart.', '')]
  assert.ok(template, `${found.key} is in no locale`)
  return template.replace(/\{(\w+)\}/g, (_, name) => {
    assert.ok(name in found.values, `${found.key} lacks ${name}`)
    return found.values[name]
  })
}

test('messages carry a state from one answer to the next', () => {
  let found = { state: fromAnswer(ANSWER) }
  const hear = (name, message) => { found = heard(found.state, name, { ...ABOUT, ...message }) }
  hear('step', { step: 4, total_steps: 300, epoch: 1, points: [[3, 0.1, 1e-4], [4, null, 1e-4]],
    seconds_per_step: 1.694, samples_per_second: 0.59, seconds_left: 501, memory_bytes: 10 * 2 ** 30,
    memory_total_bytes: 24 * 2 ** 30 })
  assert.equal(found.ask, false)
  assert.deepEqual(found.state.curve.step, [1, 2, 3, 4])
  assert.equal(said(position(found.state)), 'Step 4 of 300, epoch 1 of 10')
  assert.deepEqual(figures(found.state).map(({ value }) => (value?.key ? said(value) : value)),
    ['8 min 21 s', '1.69', '0.59', '10.0 of 24.0 GiB'])
  const evaluated = { step: 4, loss: 0.2, base_loss: 0.4, learned: 0.1, is_best: true }
  hear('evaluated', evaluated)
  hear('evaluated', evaluated)
  assert.deepEqual(found.state.heldOut, [evaluated])
  assert.deepEqual(found.state.best, { step: 4, loss: 0.2 })
  hear('previewed', { step: 4, name: 'step_000004', files: ['samples/step_000004_0.mp4'] })
  hear('previewed', { step: 4, name: 'step_000004', files: ['samples/step_000004_0.mp4'], likeness: [0.7], sampled: 'x' })
  assert.deepEqual(found.state.previews, [{ step: 4, name: 'step_000004', files: ['samples/step_000004_0.mp4'], motion: [],
    base_motion: [], likeness: [0.7], base_likeness: [] }])
  hear('saved', { step: 4 })
  assert.equal(found.ask, true, 'the server knows which checkpoints are left')
  assert.deepEqual(found.state.checkpoints, [{ step: 4, best: false }])
  hear('noted', { step: 4, sentence: 'The preview was left out.' })
  assert.equal(found.ask, true, 'the server tells the sentence with the others')
  hear('finished', { step: 4, reason: 'stopped' })
  assert.equal(found.state.state, 'stopped')
  hear('ended', {})
  assert.equal(found.ask, true)
})

test('missed steps, another run and a new start are asked for', () => {
  const state = fromAnswer(ANSWER)
  assert.equal(heard(state, 'step', { ...ABOUT, step: 9, points: [[9, 0.1, 1e-4]] }).ask, true)
  assert.equal(heard(state, 'started', { ...ABOUT, step: 2, total_steps: 600, steps_per_epoch: 30 }).ask, true)
  const other = heard(state, 'step', { ...ABOUT, run: 'other-1', step: 3, points: [[3, 0.1, 1e-4]] })
  assert.deepEqual([other.ask, other.state], [true, state])
  assert.equal(heard(null, 'step', ABOUT).ask, true)
  assert.equal(heard(state, 'unknown', ABOUT).ask, false)
})

test('a run that goes on says where it is, and after its end where the next Queue continues', () => {
  const state = (values) => fromAnswer({ ...ANSWER, step: 120, ...values })
  assert.equal(outcome(state({})), null)
  const sentences = [
    [{ state: 'interrupted', continues_from: 90 },
      'Interrupted after step 120. The next Queue continues from step 90.'],
    [{ state: 'interrupted', continues_from: 0 },
      'Interrupted after step 120, before anything was saved. The next Queue begins at step 1.'],
    [{ state: 'stopped', continues_from: 120 },
      'Stopped after step 120; the graph went on with what was learned. The next Queue continues from step 120.'],
    [{ state: 'done' }, 'Done after step 120. Queue again to load it, or set more epochs to train on.'],
    [{ state: 'early stop' }, 'Ended early after step 120: it got no better on the held-out files.'],
  ]
  for (const [values, sentence] of sentences) assert.equal(said(outcome(state(values))), sentence)
  for (const kind of ['interrupted', 'stopped']) {
    for (const from of [null, 0, 5]) said(outcome(state({ state: kind, continues_from: from })))
  }
  for (const kind of ['running', 'done', 'stopped', 'early stop', 'interrupted', 'from the future']) {
    assert.ok(said(condition(state({ state: kind }))))
  }
  assert.equal(said(condition(state({ stopping: true }))), 'stopping after this step...')
  assert.equal(condition(state({ state: 'done', stopping: true })).key, 'chart.state_done')
  assert.equal(said(position(state({ steps_per_epoch: 0 }))), 'Step 120 of 300')
})

test('durations have two parts', () => {
  const expected = [[0.4, '0 s'], [59.4, '59 s'], [59.6, '1 min 0 s'], [3599.7, '1 h 0 min'], [3600 * 14.64,
    '14 h 38 min'], [86400 * 2.5, '2 d 12 h']]
  for (const [seconds, words] of expected) assert.equal(said(duration(seconds)), words)
  for (const nothing of [undefined, null, NaN, -1]) assert.equal(duration(nothing), null)
})

test('what is not known stays empty', () => {
  assert.deepEqual(figures(fromAnswer(ANSWER)).map(({ value }) => value), [null, null, null, null])
  assert.deepEqual(fromAnswer({ run: 'x', state: 'interrupted' }).curve.step, [])
})

test('previews begin with the model without the LoRA', () => {
  const previews = [{ step: 300, name: 'step_000300' }, { step: 0, name: 'base' }, { step: 20, name: 'step_000020' }]
  assert.deepEqual(inOrder(previews).map(({ name }) => name), ['base', 'step_000020', 'step_000300'])
  assert.equal(stripOf('samples/base_0.mp4'), 'samples/base_0.jpg')
})

test('English and Chinese have the same texts with the same parts', () => {
  const parts = (words) => (words.match(/\{\w+\}/g) ?? []).sort()
  assert.deepEqual(Object.keys(CHINESE), Object.keys(TEXTS))
  for (const [key, words] of Object.entries(TEXTS)) assert.deepEqual(parts(CHINESE[key]), parts(words), key)
})

test('of a pair one run is computed and the other waits, and both are shown', () => {
  const answer = (run, values) => ({ ...ANSWER, run, name: run, ...values })
  let states = [fromAnswer(answer('a_high-1'), 'high'), fromAnswer(answer('a_low-2', { is_waiting: true }), 'low')]
  assert.deepEqual(states.map((state) => said(condition(state))), ['running', 'waiting for its turn'])
  assert.equal(said(expertOf(presentOf(states))), 'high-noise expert')
  const hear = (run, name, message) => {
    const found = heardByAll(states, name, { ...ABOUT, run, ...message })
    states = found.states
    return found.ask
  }
  assert.equal(hear('a_low-2', 'step', { step: 3, total_steps: 300, epoch: 1, points: [[3, 0.1, 1e-4]] }), false)
  assert.deepEqual(states.map((state) => said(condition(state))), ['waiting for its turn', 'running'])
  assert.deepEqual([presentOf(states).run, states[0].now, states[1].curve.step], ['a_low-2', null, [1, 2, 3]])
  hear('a_low-2', 'evaluated', { step: 3, loss: 0.2, base_loss: 0.4, is_best: true })
  assert.deepEqual([states[0].heldOut.length, states[1].heldOut.length], [0, 1])
  hear('a_low-2', 'finished', { step: 3, reason: 'stopped' })
  assert.equal(presentOf(states).run, 'a_high-1', 'the one that is still to end')
  hear('a_high-1', 'finished', { step: 2, reason: 'stopped' })
  assert.equal(presentOf(states).run, 'a_high-1')
  assert.equal(hear('another-3', 'step', { step: 1, points: [] }), true)
  assert.equal(presentOf([]), null)
  assert.equal(expertOf(fromAnswer(ANSWER)), null)
})
