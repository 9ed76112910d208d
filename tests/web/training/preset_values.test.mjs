import assert from 'node:assert/strict'
import test from 'node:test'
import { CUSTOM, changes, presetOf } from '../../../web/training/preset_values.js'

const PRESETS = { quick: { epochs: 3, rank: 16 }, long: { epochs: 90, rank: 16 } }

test('a preset fills in the widgets it names and no others', () => {
  assert.deepEqual(changes(PRESETS, 'quick', ['seed', 'epochs', 'rank']), [['epochs', 3], ['rank', 16]])
  assert.deepEqual(changes(PRESETS, 'quick', ['epochs']), [['epochs', 3]])
})

test('custom and unknown names change nothing', () => {
  for (const name of [CUSTOM, 'nothing', undefined]) assert.deepEqual(changes(PRESETS, name, ['epochs']), [])
  assert.deepEqual(changes(undefined, 'quick', ['epochs']), [])
})

test('the preset is told from the values, and a value changed by hand is custom', () => {
  assert.equal(presetOf(PRESETS, { epochs: 90, rank: 16, seed: 4 }), 'long')
  assert.equal(presetOf(PRESETS, { epochs: 91, rank: 16 }), CUSTOM)
  assert.equal(presetOf(undefined, {}), CUSTOM)
})
