import assert from 'node:assert/strict'
import test from 'node:test'
import { described, filtered, isFormer, mebibytes, MOST_OVERLAID, offered, sorted, stillThere, toggled } from '../../../web/runs/run_list.js'

const run = (name, rest = {}) => ({ run: `${name}-00`, name, base: 'Wan2.1 1.3B', state: 'done', updated: 0, step: 10, total_steps: 40,
  best: null, base_loss: null, checkpoints: [], rank: 0, bytes: 0, ...rest })
const names = (runs) => runs.map(({ name }) => name)

test('every word must be found, in the name, the folder, the model or the state', () => {
  const runs = [run('cat'), run('dog', { base: 'Wan2.1 14B' }), run('Cat two', { state: 'stopped' })]
  assert.deepEqual(names(filtered(runs, '')), ['cat', 'dog', 'Cat two'])
  assert.deepEqual(names(filtered(runs, 'CAT')), ['cat', 'Cat two'])
  assert.deepEqual(names(filtered(runs, ' cat  stopped ')), ['Cat two'])
  assert.deepEqual(names(filtered(runs, '14b')), ['dog'])
  assert.deepEqual(names(filtered(runs, 'two-00')), ['Cat two'])
})

test('orders: newest first, names as people count, best loss with those without one last', () => {
  const runs = [run('run 10', { updated: 1, best: { loss: 0.2 } }), run('run 9', { updated: 3 }), run('a', { updated: 2,
    best: { loss: 0.1 } })]
  assert.deepEqual(names(sorted(runs, 'date')), ['run 9', 'a', 'run 10'])
  assert.deepEqual(names(sorted(runs, 'name')), ['a', 'run 9', 'run 10'])
  assert.deepEqual(names(sorted(runs, 'loss')), ['a', 'run 10', 'run 9'])
  assert.deepEqual(names(sorted(runs, 'unknown')), ['run 9', 'a', 'run 10'])
  assert.deepEqual(names(runs), ['run 10', 'run 9', 'a'], 'the list itself is left as it is')
})

test('a click chooses and lets go, and only so many are chosen at a time', () => {
  assert.deepEqual(toggled(['a', 'b'], 'a'), ['b'])
  assert.deepEqual(toggled(['a'], 'b'), ['a', 'b'])
  const many = Array.from({ length: MOST_OVERLAID }, (_, index) => `run ${index}`)
  assert.deepEqual(toggled(many, 'new'), [...many.slice(1), 'new'])
  assert.deepEqual(stillThere(['a-00', 'gone'], [run('a')]), ['a-00'])
})

test('the best checkpoint is offered, else the newest', () => {
  const checkpoints = [{ step: 10 }, { step: 20 }]
  assert.equal(offered(run('a', { checkpoints, best: { step: 10 } })), 10)
  assert.equal(offered(run('a', { checkpoints })), 20)
  assert.equal(offered(run('a')), null)
})

test('what a run is described by', () => {
  const keys = (each) => described(each, String).map(([key]) => key)
  assert.deepEqual(keys(run('a')), ['runs.steps', 'runs.size'])
  assert.deepEqual(keys(run('a', { best: { loss: 0.5, step: 7 }, rank: 8 })), ['runs.steps', 'runs.best', 'runs.rank', 'runs.size'])
  const [, best] = described(run('a', { best: { loss: 0.5, step: 7 }, base_loss: 0.75 }), String)
  assert.deepEqual(best, ['runs.best_of', { loss: '0.5', step: 7, base: '0.75' }])
  const measured = run('a', { best: { loss: 0.5, step: 7, learned: 0.333 }, base_loss: 0.75 })
  assert.deepEqual(described(measured, String)[2], ['chart.meters', { learned: '0.33' }])
  assert.ok(!keys({ ...measured, best: { loss: 0.5, step: 7 } }).includes('chart.meters'), 'runs of before')
  assert.equal(mebibytes(3.14159 * 2 ** 20), '3.1')
  assert.equal(mebibytes(140.6 * 2 ** 20), '141')
})

test('an attempt is a former one where a newer one of the same run is there', () => {
  const [first, second, other] = [{ key: 'a', attempt: 1 }, { key: 'a', attempt: 2 }, { key: 'b', attempt: 3 }]
  const runs = [first, second, other]
  assert.deepEqual(runs.map((each) => isFormer(each, runs)), [true, false, false])
})
