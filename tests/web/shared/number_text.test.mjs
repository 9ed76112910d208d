import assert from 'node:assert/strict'
import test from 'node:test'
import { compact } from '../../../web/shared/number_text.js'

test('numbers in few characters', () => {
  assert.deepEqual([0.081234, 1e-4, 2.5e-5, 0, 12.3456, 31200, 1e9, null].map(compact),
    ['0.08123', '1e-4', '2.5e-5', '0', '12.35', '31200', '1e9', '-'])
})
