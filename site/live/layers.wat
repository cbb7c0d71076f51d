;; Two loops of the small network of the plane, four numbers at a time: site/live.py assembles them at each build.
;; Pages on file:// can't fetch a runtime, and plain JavaScript takes three times as long.
;; `product`: out (n, outputs) = x (n, inputs) times w (inputs, outputs) plus b, for n and outputs divisible by 4.
;; `silu`: out = x / (1 + exp(-x)), for a count divisible by 4. All places are in bytes, all numbers in 32 bits.
(module
  (memory (import "page" "memory") 1)

  (func (export "product") (param $x i32) (param $w i32) (param $b i32) (param $out i32) (param $n i32) (param $inputs i32) (param $outputs i32)
    (local $row i32) (local $wide i32) (local $i i32) (local $j i32) (local $k i32) (local $at i32) (local $place i32)
    (local $weight v128) (local $p v128) (local $q v128) (local $r v128) (local $s v128)
    (local.set $row (i32.shl (local.get $inputs) (i32.const 2)))
    (local.set $wide (i32.shl (local.get $outputs) (i32.const 2)))
    (loop $points  ;; four rows of x
      (local.set $j (i32.const 0))
      (loop $columns  ;; four outputs
        (local.set $p (v128.load (i32.add (local.get $b) (local.get $j))))
        (local.set $q (local.get $p)) (local.set $r (local.get $p)) (local.set $s (local.get $p))
        (local.set $at (i32.add (local.get $w) (local.get $j)))
        (local.set $place (local.get $x))
        (local.set $k (local.get $inputs))
        (loop $terms
          (local.set $weight (v128.load (local.get $at)))
          (local.set $p (f32x4.add (local.get $p) (f32x4.mul (local.get $weight) (v128.load32_splat (local.get $place)))))
          (local.set $q (f32x4.add (local.get $q) (f32x4.mul (local.get $weight)
            (v128.load32_splat (i32.add (local.get $place) (local.get $row))))))
          (local.set $r (f32x4.add (local.get $r) (f32x4.mul (local.get $weight)
            (v128.load32_splat (i32.add (local.get $place) (i32.shl (local.get $row) (i32.const 1)))))))
          (local.set $s (f32x4.add (local.get $s) (f32x4.mul (local.get $weight)
            (v128.load32_splat (i32.add (local.get $place) (i32.mul (local.get $row) (i32.const 3)))))))
          (local.set $at (i32.add (local.get $at) (local.get $wide)))
          (local.set $place (i32.add (local.get $place) (i32.const 4)))
          (br_if $terms (local.tee $k (i32.sub (local.get $k) (i32.const 1)))))
        (local.set $at (i32.add (local.get $out) (local.get $j)))
        (v128.store (local.get $at) (local.get $p))
        (v128.store (local.tee $at (i32.add (local.get $at) (local.get $wide))) (local.get $q))
        (v128.store (local.tee $at (i32.add (local.get $at) (local.get $wide))) (local.get $r))
        (v128.store (i32.add (local.get $at) (local.get $wide)) (local.get $s))
        (br_if $columns (i32.lt_u (local.tee $j (i32.add (local.get $j) (i32.const 16))) (local.get $wide))))
      (local.set $x (i32.add (local.get $x) (i32.shl (local.get $row) (i32.const 2))))
      (local.set $out (i32.add (local.get $out) (i32.shl (local.get $wide) (i32.const 2))))
      (br_if $points (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 4))) (local.get $n)))))

  ;; exp(y) = 2^m exp(r) with m whole and |r| <= log(2) / 2, where seven terms of the series are enough.
  (func (export "silu") (param $x i32) (param $out i32) (param $count i32)
    (local $at i32) (local $v v128) (local $m v128) (local $r v128) (local $e v128)
    (loop $numbers
      (local.set $v (v128.load (i32.add (local.get $x) (local.get $at))))
      (local.set $r (f32x4.min (f32x4.max (f32x4.neg (local.get $v)) (f32x4.splat (f32.const -87))) (f32x4.splat (f32.const 87))))
      (local.set $m (f32x4.nearest (f32x4.mul (local.get $r) (f32x4.splat (f32.const 1.4426950408889634)))))
      (local.set $r (f32x4.sub (f32x4.sub (local.get $r) (f32x4.mul (local.get $m) (f32x4.splat (f32.const 0.693359375))))
        (f32x4.mul (local.get $m) (f32x4.splat (f32.const -2.12194440e-4)))))
      (local.set $e (f32x4.splat (f32.const 0.001388888888888889)))
      (local.set $e (f32x4.add (f32x4.mul (local.get $e) (local.get $r)) (f32x4.splat (f32.const 0.008333333333333333))))
      (local.set $e (f32x4.add (f32x4.mul (local.get $e) (local.get $r)) (f32x4.splat (f32.const 0.041666666666666664))))
      (local.set $e (f32x4.add (f32x4.mul (local.get $e) (local.get $r)) (f32x4.splat (f32.const 0.16666666666666666))))
      (local.set $e (f32x4.add (f32x4.mul (local.get $e) (local.get $r)) (f32x4.splat (f32.const 0.5))))
      (local.set $e (f32x4.add (f32x4.mul (local.get $e) (local.get $r)) (f32x4.splat (f32.const 1))))
      (local.set $e (f32x4.add (f32x4.mul (local.get $e) (local.get $r)) (f32x4.splat (f32.const 1))))
      (local.set $m (i32x4.shl (i32x4.add (i32x4.trunc_sat_f32x4_s (local.get $m)) (i32x4.splat (i32.const 127))) (i32.const 23)))
      (local.set $e (f32x4.add (f32x4.mul (local.get $e) (local.get $m)) (f32x4.splat (f32.const 1))))
      (v128.store (i32.add (local.get $out) (local.get $at)) (f32x4.div (local.get $v) (local.get $e)))
      (br_if $numbers (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 16))) (i32.shl (local.get $count) (i32.const 2))))))
)
