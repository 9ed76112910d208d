import assert from 'node:assert/strict'
import test from 'node:test'
import { described, ofVideo } from '../../../web/shared/measured.js'

const PREVIEW = { step: 4, motion: [4.5, 2, 1], base_motion: [5, 0], likeness: [0.7149, null, 0.5], base_likeness: [0.58] }

test('a preview beside that of the base model, as far as both are known', () => {
  assert.deepEqual([0, 1, 2, 3].map((index) => described(ofVideo(PREVIEW, index))), [
    [['chart.likeness_of', { likeness: '0.71', base: '0.58' }], ['chart.motion', { motion: '0.90' }]],
    [], // it stands still in both
    [['chart.likeness', { likeness: '0.50' }]],
    []])
  assert.deepEqual(described(ofVideo({ step: 4, files: ['a.mp4'] }, 0)), [], 'of an older server')
})
